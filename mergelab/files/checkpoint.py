"""A folder of safetensors as a lazy mapping from name to tensor.

Names on disk are what is merged, so no architecture is known here. Pickles are never opened. Adapters: adapter.py; the
writer of another folder like it: shards.py.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.files.stamp import Stamp, check_readable, stamp_of, unreadable

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_CODES = {dtype: code for code, dtype in FLOATS.items()}
_BYTES = {8: ("C64", "F64", "I64", "U64"), 4: ("F32", "I32", "U32"), 2: ("F16", "BF16", "I16", "U16")}
_WIDTHS = {dtype: width for width, dtypes in _BYTES.items() for dtype in dtypes}  # 1 for all others
_BESIDE = ("config.json", INDEX, "tokenizer.json")  # say what the weights are: which, tied or not, a row of which token
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies and what it is. dtype: safetensors' code, as in 'BF16'; start: the first byte."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)

    @property
    def mergeable(self) -> bool:
        """Floating-point weights are merged; masks, indices and counters are not."""
        return self.dtype in FLOATS

    @property
    def quantised(self) -> bool:
        """Floats of eight bits or fewer are codes that need their scales to mean anything."""
        return self.dtype.startswith("F") and self.dtype not in FLOATS

    @property
    def holds_codes(self) -> bool:
        """Quantised floats, and the bytes that other quantised weights are stored in."""
        return self.quantised or self.dtype in ("I8", "U8")

    @property
    def width(self) -> int:
        """Bytes per number."""
        return _WIDTHS.get(self.dtype, 1)

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
    """The weights of a model folder. Opening reads the headers alone; a tensor is read when it is asked for.

    stamps: each file that decides what the weights are, as it was when it was opened.
    """

    def __init__(self, folder: Path, source: str):
        self.folder, self.source = folder, source
        self.entries: dict[str, Entry] = {}
        self.stamps = {path: stamp_of(path) for file in _BESIDE if (path := folder / file).is_file()}
        placed = _weight_files(folder, source)
        for file, names in sorted(placed.items()):  # what lies in two files is taken from the one that the index names
            self.stamps[folder / file] = stamp_of(folder / file)  # before its header: that tells where to read
            found = entries_of(folder / file, source)
            self.entries |= {n: entry for n, entry in found.items() if n in names or n not in self.entries}
        if lacking := set().union(*placed.values()) - self.entries.keys():
            raise MergeError(f"'{source}' lacks the tensor '{min(lacking)}', which its index names.")

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some rows of it (along its first dimension)."""
        return read_tensor(self.folder, name, self.entries[name], self.source, rows)

    def stamp(self, name: str) -> Stamp:
        """What tells a tensor's file, as it was when it was opened, from what it is after a change."""
        return self.stamps[self.folder / self.entries[name].file]

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
    opened(path, source)  # the library checks that the header is sound and that all of the file is there
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    about = {name: value for name, value in header.items() if name != "__metadata__"}
    return {
        name: Entry(path.name, one["dtype"], tuple(one["shape"]), 8 + size + one["data_offsets"][0])
        for name, one in about.items()
    }


def read_tensor(folder: Path, name: str, entry: Entry, source: str, rows: slice | None = None) -> Tensor:
    """A tensor of a safetensors file, or some rows of it (along its first dimension); MergeError if they are not there.

    Floats are read straight into the tensor: a mapping would count as this process's memory, and would have to be
    opened and its header understood once more for every part.
    """
    if not entry.mergeable:
        with opened(folder / entry.file, source) as file:
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    first, stop, _ = (rows or slice(None)).indices(entry.shape[0]) if entry.shape else (0, 1, 1)
    shape = (max(0, stop - first), *entry.shape[1:]) if entry.shape else ()
    tensor = torch.empty(shape, dtype=FLOATS[entry.dtype])
    try:
        with open(os.path.join(folder, entry.file), "rb", buffering=0) as file:
            file.seek(entry.start + first * entry.row_size)
            left = memoryview(tensor.view(-1).view(torch.uint8).numpy())
            while left and (count := file.readinto(left)):
                left = left[count:]
    except OSError as error:
        raise unreadable(folder / entry.file, error) from None
    if left:
        raise MergeError(f"'{entry.file}' of '{source}' has become shorter since it was opened.")
    return tensor


def opened(path: Path, source: str) -> safe_open:
    """An open safetensors file; MergeError if it cannot be read, or is broken."""
    check_readable([path])  # of one that may not be read the library says that it is not there
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise MergeError(f"'{path.name}' of '{source}' is not a whole safetensors file: {error}.") from None
