"""The page of mergelab: `python app.py`, or what a Hugging Face Space runs."""

from contextlib import suppress

with suppress(ImportError):
    import spaces  # noqa: F401  a Space that lends its GPU wants this before torch

from mergelab.page import launch  # noqa: E402

if __name__ == "__main__":
    launch()
