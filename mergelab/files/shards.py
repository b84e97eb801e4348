"""Deals the tensors of a model out to weight files of a given size, as Hugging Face names them, and writes those."""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.files.checkpoint import FLOATS, SINGLE, Entry
from mergelab.maths.inner import finite

_CHUNK = 1 << 18  # bytes that are read back at a time: always as many, so that they fit where others were


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


class ShardWriter:
    """Writes one safetensors file in any order, by any number of threads or processes: every tensor has its place.

    entries: name -> Entry, as the file is to hold them, best in the order in which they will be finished; the finished
    file has exactly these. `create` makes the file; nothing stays open between two tensors, so that a merge that stops
    midway has nothing to close. beside: one thread, which finds its sha256 while it is written, from the beginning as
    far as that is finished; without one it is found when it is asked for.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], beside: Executor | None = None):
        self.path, self.entries, self.offsets, end = path, entries, {}, 0
        header: dict = {"__metadata__": {"format": "pt"}}
        for name, entry in sorted(entries.items(), key=lambda item: -item[1].width):  # so that all lie aligned
            self.offsets[name] = end
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.size]}
            end += entry.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header, self.size = struct.pack("<Q", len(text)) + text, end
        self._left = [*self.offsets][::-1]  # what is not hashed yet, from the end of the file to its beginning
        self._finished: set[str] = set()
        self._sha256 = hashlib.sha256(self._header)
        self._beside, self._hashing = beside, []

    def create(self) -> None:
        """Make the file in its full length, header and all; one that is there already is made anew."""
        with open(self.path, "wb") as file:
            file.truncate(len(self._header) + self.size)
        self._write(self._header, 0)

    @property
    def is_there(self) -> bool:
        """Whether the file is one that `create` has made for the same entries."""
        try:
            with open(self.path, "rb") as file:
                ours = file.read(len(self._header)) == self._header
                return ours and file.seek(0, os.SEEK_END) == len(self._header) + self.size
        except OSError:
            return False

    def put(self, name: str, tensor: Tensor, first: int = 0, checksum: int = 0) -> int:
        """Write a tensor, or its rows from `first` on, in the dtype that its entry says; MergeError if it does not fit.

        The checksum (CRC-32) of what was written, carried on from that of the rows before.
        """
        entry = self.entries[name]
        cast = tensor.to(dtype=FLOATS.get(entry.dtype, tensor.dtype), device="cpu").contiguous()
        assert cast.shape[1:] == entry.shape[1:] and cast.dim() == len(entry.shape), name
        if entry.mergeable and not finite(cast):
            raise MergeError(
                f"The merged '{name}' does not fit into {entry.dtype}. Write it in float32, or use smaller weights."
            )
        data = cast.reshape(-1).view(torch.uint8).numpy()
        self._write(data, self._place(name) + first * entry.row_size)
        return zlib.crc32(data, checksum)

    def finished(self, name: str) -> None:
        """Say that a tensor is written whole: it can be hashed."""
        self._finished.add(name)
        if self._beside:
            self._hashing.append(self._beside.submit(self._hash_on))

    def sha256(self) -> str:
        """The sha256 of the whole file, once all of it is written."""
        for job in self._hashing:
            job.result()  # or the error that it met
        self._finished.update(self._left)
        self._hash_on()
        return self._sha256.hexdigest()

    def _hash_on(self) -> None:
        while self._left and self._left[-1] in self._finished:
            for chunk in self._read(self._left.pop()):
                self._sha256.update(chunk)

    def checksum(self, name: str) -> int:
        """The checksum, as `put` gives it, of what the file holds of a tensor."""
        checksum = 0
        for chunk in self._read(name):
            checksum = zlib.crc32(chunk, checksum)
        return checksum

    def _read(self, name: str) -> Iterator[memoryview]:
        """What the file holds of a tensor, some at a time: good until the next is asked for."""
        left = self.entries[name].size
        room = memoryview(bytearray(_CHUNK))
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._place(name))
            while left and (count := file.readinto(room[:left])):
                yield room[:count]
                left -= count

    def _place(self, name: str) -> int:
        return len(self._header) + self.offsets[name]

    def _write(self, data: Any, offset: int) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)
