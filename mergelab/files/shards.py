"""Deals the tensors of a model out to weight files of a given size, as Hugging Face names them."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from mergelab.files.checkpoint import SINGLE, Entry


def sharded(entries: Mapping[str, Entry], most: int | None) -> dict[str, Entry]:
    """The entries in their order, in files of at most so many bytes (one tensor may be more); None leaves them."""
    if most is None:
        return dict(entries)
    number, room, numbers = 1, most, {}
    for name, entry in entries.items():
        size = entry.width * prod(entry.shape)
        if size > room and room < most:
            number, room = number + 1, most
        numbers[name], room = number, room - size
    return {name: replace(entry, file=_file(numbers[name], number)) for name, entry in entries.items()}


def _file(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
