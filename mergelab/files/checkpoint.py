"""A folder of safetensors as a lazy mapping from name to tensor, and the writer of another one like it.

Names on disk are what is merged, so no architecture is known here. Pickles are never opened. Adapters: adapter.py.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.maths.inner import finite

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_CODES = {dtype: code for code, dtype in FLOATS.items()}
_WIDTHS = {8: ("C64", "F64", "I64", "U64"), 4: ("F32", "I32", "U32"), 2: ("F16", "BF16", "I16", "U16")}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies and what it is. dtype: safetensors' code, as in 'BF16'."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def mergeable(self) -> bool:
        """Floating-point weights are merged; masks, indices and counters are not."""
        return self.dtype in FLOATS

    @property
    def quantised(self) -> bool:
        """Floats of eight bits or fewer are codes that need their scales to mean anything."""
        return self.dtype.startswith("F") and self.dtype not in FLOATS

    @property
    def width(self) -> int:
        """Bytes per number."""
        return next((width for width, dtypes in _WIDTHS.items() if self.dtype in dtypes), 1)

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return self.width * math.prod(self.shape)

    @property
    def row_size(self) -> int:
        """Bytes of one step along the first dimension."""
        return self.width * math.prod(self.shape[1:])

    def cast(self, dtype: str | None) -> "Entry":
        """The entry in another floating-point dtype ('float16', …); as it is for None, or if it holds no floats."""
        return replace(self, dtype=_CODES[getattr(torch, dtype)]) if dtype and self.mergeable else self


class Checkpoint(Mapping[str, Tensor]):
    """The weights of a model folder. Opening reads the headers alone; a tensor is read when it is asked for."""

    def __init__(self, folder: Path, source: str):
        self.folder, self.source = folder, source
        self.entries: dict[str, Entry] = {}
        placed = _weight_files(folder, source)
        for file in sorted(placed):
            self.entries |= entries_of(folder / file, source)
        if lacking := set().union(*placed.values()) - self.entries.keys():
            raise MergeError(f"'{source}' lacks the tensor '{min(lacking)}', which its index names.")

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some rows of it (along its first dimension)."""
        # The file is opened anew each time: pages of a mapping that stays open count as this process's memory.
        with opened(self.folder / self.entries[name].file, self.source) as file:
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def config(self) -> dict:
        """The model's config.json; empty if the folder has none."""
        return read_json(self.folder / "config.json") if (self.folder / "config.json").is_file() else {}


def read_json(path: Path) -> dict:
    """A JSON object from a file; MergeError if it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MergeError(f"Cannot read '{path}': {error}.") from None
    if not isinstance(data, dict):
        raise MergeError(f"'{path}' should hold a JSON object.")
    return data


def _weight_files(folder: Path, source: str) -> dict[str, set[str]]:
    """The files that transformers would load, in its order of preference; each with what an index expects there."""
    if (folder / SINGLE).is_file():
        return {SINGLE: set()}
    if (folder / INDEX).is_file():
        return _shards(folder, source)
    files = sorted(path.name for path in folder.glob("*.safetensors") if path.name != "adapter_model.safetensors")
    if len(files) == 1:
        return {files[0]: set()}
    if files:
        raise MergeError(f"'{source}' has several safetensors files, and no {INDEX} that says which are the model's.")
    if any(found for pattern in _PICKLES for found in folder.glob(pattern)):
        raise MergeError(
            f"'{source}' holds pickled weights only, and those can run code. Save it as safetensors first."
        )
    raise MergeError(f"'{source}' has no safetensors weights in it.")


def _shards(folder: Path, source: str) -> dict[str, set[str]]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(file, str) and file == Path(file).name for file in names):
        raise MergeError(f"'{source}' has a {INDEX} without a usable weight_map.")
    if missing := sorted({file for file in names if not (folder / file).is_file()}):
        raise MergeError(f"'{source}' lacks {', '.join(missing)}, which its index names. Is the download complete?")
    return {file: {name for name in weight_map if weight_map[name] == file} for file in set(names)}


def entries_of(path: Path, source: str) -> dict[str, Entry]:
    """Every tensor of a safetensors file, from its header alone."""
    with opened(path, source) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no dict
        return {name: Entry(path.name, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


def opened(path: Path, source: str) -> safe_open:
    """An open safetensors file; MergeError if it is broken."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise MergeError(f"'{path.name}' of '{source}' is not a whole safetensors file: {error}.") from None


class ShardWriter:
    """Writes one safetensors file in any order, by any number of threads or processes: every tensor has its place.

    entries: name -> Entry, as the file is to hold them; the finished file has exactly these. `create` makes the file;
    nothing stays open between two tensors, so that a merge that stops midway has nothing to close.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]):
        self.path, self.entries, self.offsets, end = path, entries, {}, 0
        header: dict = {"__metadata__": {"format": "pt"}}
        for name, entry in sorted(entries.items(), key=lambda item: -item[1].width):  # so that all lie aligned
            self.offsets[name] = end
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [end, end + entry.size]}
            end += entry.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header, self.size = struct.pack("<Q", len(text)) + text, end

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

    def put(self, name: str, tensor: Tensor, first: int = 0, digest: Any = None) -> None:
        """Write a tensor, or its rows from `first` on, in the dtype that its entry says; MergeError if it does not fit.

        digest: a hash of hashlib's that is to take in the bytes written.
        """
        entry = self.entries[name]
        cast = tensor.to(dtype=FLOATS.get(entry.dtype, tensor.dtype), device="cpu").contiguous()
        assert cast.shape[1:] == entry.shape[1:] and cast.dim() == len(entry.shape), name
        if entry.mergeable and not finite(cast):
            raise MergeError(
                f"The merged '{name}' does not fit into {entry.dtype}. Write it in float32, or use smaller weights."
            )
        data = cast.reshape(-1).view(torch.uint8).numpy()
        if digest is not None:
            digest.update(data)
        self._write(data, self._place(name) + first * entry.row_size)

    def digest(self, name: str) -> str:
        """The sha256 of what the file holds of a tensor."""
        digest, left = hashlib.sha256(), self.entries[name].size
        with open(self.path, "rb") as file:
            file.seek(self._place(name))
            while left and (chunk := file.read(min(left, 1 << 20))):
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest()

    def _place(self, name: str) -> int:
        return len(self._header) + self.offsets[name]

    def _write(self, data: Any, offset: int) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)
