"""What a model's config.json says, read with care: anybody may have written it. A MergeError names the key."""

from collections.abc import Mapping
from typing import Any

from mergelab.errors import MergeError, brief

Config = Mapping[str, Any]


def count_in(config: Config, *keys: str) -> int | None:
    """The whole number under the first of these keys that says something; None if none does."""
    key = next((key for key in keys if config.get(key)), "")
    found = config.get(key)
    if found is not None and (type(found) is not int or found < 1):
        raise _unusable(key, "a whole number, at least 1", found)
    return found


def share_in(config: Config, *keys: str) -> float | None:
    """The number from 0 to 1 under the first of these keys that is there; None if none is."""
    key = next((key for key in keys if config.get(key) is not None), "")
    found = config.get(key)
    if found is not None and (type(found) not in (int, float) or not 0 <= found <= 1):
        raise _unusable(key, "a number from 0 to 1", found)
    return found


def part_of(config: Config, key: str) -> Config:
    """The mapping under a key; empty if there is none."""
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise _unusable(key, "a mapping of names to values", found)
    return found


def names_in(config: Config, key: str) -> list[str]:
    """The list of names under a key; empty if there is none."""
    found = config.get(key) or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _unusable(key, "a list of names", found)
    return found


def _unusable(key: str, wanted: str, found: Any) -> MergeError:
    return MergeError(f"config.json: '{key}' must be {wanted}, not {brief(found)}. Take the file from the model again.")
