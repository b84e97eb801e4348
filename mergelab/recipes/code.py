"""A recipe as a short text that fits into a link, and back: its JSON, deflated, in the letters of base64url.

A code comes from anyone: it is bounded in size, on paper and unpacked, and leads to a Recipe or to a MergeError.
"""

import base64
import binascii
import json
import zlib
from typing import Any

from mergelab.errors import MergeError
from mergelab.recipes.recipe import Recipe

_MOST_CODE, _MOST_TEXT = 8_000, 64_000  # characters of the code, bytes of the JSON
_HEADLESS = -15  # zlib's word for a stream without a header


def coded(recipe: Recipe) -> str:
    """The recipe in letters, digits, - and _."""
    text = json.dumps(_brief(recipe.to_dict()), separators=(",", ":"), ensure_ascii=False)
    squeezer = zlib.compressobj(9, zlib.DEFLATED, _HEADLESS)
    squeezed = squeezer.compress(text.encode()) + squeezer.flush()
    return base64.urlsafe_b64encode(squeezed).decode().rstrip("=")


def decoded(code: str) -> Recipe:
    """The recipe that `coded` wrote; MergeError if this is none of its codes."""
    if len(code) > _MOST_CODE:
        raise MergeError(f"The link's recipe has {len(code)} characters; more than {_MOST_CODE} are not read.")
    try:
        return Recipe.from_dict(_unpacked(code), "the link's recipe")
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        raise MergeError("The link's recipe cannot be read: part of it is missing or changed. Copy it again.") from None


def _unpacked(code: str) -> Any:
    squeezed = base64.b64decode(code.encode("ascii") + b"=" * (-len(code) % 4), b"-_", validate=True)
    opener = zlib.decompressobj(_HEADLESS)
    text = opener.decompress(squeezed, _MOST_TEXT)
    if not opener.eof:
        raise ValueError("cut short, or larger than a recipe")
    data = json.loads(text.decode(), parse_constant=_refused)
    json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    return data


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _brief(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's dict with a model that weighs 1 and has nothing of its own as its name alone."""
    plain = {"weight": 1.0}
    models = [entry["model"] if entry["parameters"] == plain else entry for entry in data["models"]]
    return data | {"models": models}
