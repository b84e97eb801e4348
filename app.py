"""The page of mergelab: `python app.py`, or what a Hugging Face Space runs."""

from mergelab.page import launch

if __name__ == "__main__":
    launch()
