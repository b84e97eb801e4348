"""mergelab: see what a merge of fine-tuned models does, before and after it is made.

The public names are those of api.py, which is imported, and torch with it, when the first of them is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergelab.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":  # what Python asks of every module
        raise AttributeError(f"module 'mergelab' has no attribute '{name}'")
    return getattr(import_module("mergelab.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
