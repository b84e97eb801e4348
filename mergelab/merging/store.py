"""Factors of deltas, kept by content: what was factorised once is not factorised again, in this process or the next.

A key is the hash of a delta's own bytes, of how many vectors were wanted and of this file's VERSION, so that it holds
whatever the delta came from, and a changed expert is another key. On disk an entry is a safetensors file that carries
its key and the hash of its content; one that is torn, foreign or altered is computed anew, never trusted. Factors are
the same to the bit whether computed, remembered or read. This room knows matrices and layers, and no model.

MERGELAB_CACHE: the folder (default: ~/.cache/mergelab/factors; "off": none). MERGELAB_CACHE_MB: its bound (2048).
MERGELAB_STORE_MB: the bound of what is kept in memory (512).
"""

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.maths import spectral
from mergelab.maths.inner import is_unmoved
from mergelab.maths.spectral import Delta, Factors, LowRank, Wanted
from mergelab.maths.tall import Tall
from mergelab.method import Factorise, Layer

VERSION = "3"  # raise it when the same delta gets other factors than before
AMOUNTS = ("none", "quarter", "all")  # how many vectors are computed: fewer cost less, and most merges need a quarter
Origin = Hashable | None  # a tensor's name, its files' numbers and dates: no delta changes without it
ABANDONED = 3600  # seconds after which a file that is being written is taken for one that a killed process left
SMALL = 96  # a matrix with a side this short is factorised faster than a file is read


class Store:
    """Kept factors: in memory up to `memory` bytes, in `folder` (None: nowhere) up to `disk` bytes.

    The one unused for longest goes first. Threads and processes may share a folder. `troubles` says what went wrong
    with the folder; nothing that does keeps the factors from being found.
    """

    def __init__(self, folder: Path | None, memory: int, disk: int, troubles: tuple[str, ...] = ()):
        self.folder, self.memory, self.disk = folder if disk > 0 else None, memory, disk
        self.troubles = troubles
        self._contents: dict[Hashable, str] = {}
        self._held: OrderedDict[str, Factors] = OrderedDict()
        self._held_bytes, self._lock = 0, threading.Lock()
        self._disk_bytes: int | None = None  # not looked yet

    @property
    def held_bytes(self) -> int:
        """The bytes of what is kept in memory."""
        return self._held_bytes

    def factors(self, delta: Tensor | Tall, wanted: Wanted | None, origin: Origin = None) -> tuple[Factors, bool]:
        """The factors of a delta, at least those wanted, and whether they were kept from before.

        origin: where the delta was read, so that what was hashed once in this process is not hashed again.
        Vectors come in the delta's own precision. What is kept comes in one of few amounts, so that another η finds its
        vectors there; a quarter of them and all differ in their last bits, and what a merge writes must not depend on
        what was asked before.
        """
        if is_unmoved(delta):
            return spectral.nothing(delta), False
        if not self.folder and not self.memory:
            return _in_own_precision(spectral.factors(delta, wanted), delta), False
        content = self._content(delta, origin)
        known = self._known(content, delta, wanted)
        return (self._made(content, delta, wanted), False) if known is None else (known, True)

    def _known(self, content: str, delta: Tensor | Tall, wanted: Wanted | None) -> Factors | None:
        for amount in AMOUNTS:
            found = self._recalled(content, amount, delta)
            if found is not None:
                right = _amount(found.values, delta, wanted)
                return found if right in (amount, "none") else self._recalled(content, right, delta)
        return None

    def _content(self, delta: Tensor | Tall, origin: Origin) -> str:
        if origin is None:
            return _content(delta)
        key = (origin, delta.dtype, delta.device.type)
        if key not in self._contents:
            self._contents[key] = _content(delta)
        return self._contents[key]

    def _made(self, content: str, delta: Tensor | Tall, wanted: Wanted | None) -> Factors:
        made = spectral.factors(delta, lambda values: _count(_amount(values, delta, wanted), delta))
        made = _in_own_precision(made, delta)
        key = f"{content}-{_amount(made.values, delta, wanted)}"
        self._keep(key, made)
        if self.folder and min(delta.shape) > SMALL and not self.troubles:
            self._write(key, made)
        return made

    def _recalled(self, content: str, amount: str, delta: Tensor | Tall) -> Factors | None:
        key = f"{content}-{amount}"
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return _on(delta, self._held[key])
        found = self._read(key) if self.folder and min(delta.shape) > SMALL else None
        if found is None or not _fits(found, delta):
            return None
        self._keep(key, found)
        return _on(delta, found)

    def _keep(self, key: str, made: Factors) -> None:
        made = _on(torch.empty(0), made)
        if _size(made) > self.memory:
            return
        with self._lock:
            if key not in self._held:
                self._held_bytes += _size(made)
            self._held[key] = made
            while self._held_bytes > self.memory:
                self._held_bytes -= _size(self._held.popitem(last=False)[1])

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Factors | None:
        """The entry of that key if there is one that is whole and says to be it."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                about = file.metadata() or {}
                values, vectors = file.get_tensor("values").clone(), file.get_tensor("vectors").clone()
            if about.get("key") != key or about.get("sha256") != _digest(about, values, vectors):
                return None
            with suppress(OSError):  # the folder may be read-only
                os.utime(self._path(key))  # it was of use just now
            return Factors(values, vectors, about.get("left") == "yes", about.get("road", ""))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            self._trouble(error)
            return None
        except (SafetensorError, OSError, RuntimeError, ValueError):
            return None

    def _write(self, key: str, made: Factors) -> None:
        made = _on(torch.empty(0), made)
        about = {"key": key, "left": "yes" if made.left else "no", "road": made.road}
        about["sha256"] = _digest(about, made.values, made.vectors)
        path = self._path(key)
        fresh = path.with_name(f"{uuid4().hex}.fresh")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file({"values": made.values.contiguous(), "vectors": made.vectors}, fresh, metadata=about)
                self._make_room(fresh.stat().st_size)
                os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)
        except (SafetensorError, OSError) as error:
            self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        self.troubles = (f"Factors cannot be kept in '{self.folder}' ({why}): the next merge has to find them again.",)

    def _make_room(self, size: int) -> None:
        """Count what is to be added, and drop the entries that are unused for longest if the bound is passed."""
        with self._lock:
            if self._disk_bytes is None or self._disk_bytes + size > self.disk:
                _remove_abandoned(self.folder)
                kept = sorted((stat.st_mtime, stat.st_size, path) for path, stat in _files(self.folder))
                self._disk_bytes = sum(size for _, size, _ in kept)
                for _, old, path in kept:
                    if self._disk_bytes + size <= self.disk:
                        break
                    path.unlink(missing_ok=True)
                    self._disk_bytes -= old
            self._disk_bytes += size


class Lookups:
    """What one job asks of a store, counted."""

    def __init__(self, store: Store):
        self.store, self.asked, self.found, self._lock = store, 0, 0, threading.Lock()

    def layer(self, layer: Layer, origins: Sequence[Origin] | None = None) -> Layer:
        """The layer, with factors from the store. origins: where each delta was read, or None for one."""
        return replace(layer, factorise=self.factorise(layer.deltas, origins))

    def factorise(self, deltas: Sequence[Delta | Tall], origins: Sequence[Origin] | None = None) -> Factorise:
        """Finds factors of deltas in the store; those of thin products, which are not kept, all at once."""

        def found(experts: Sequence[int], wanted: Wanted | None) -> Sequence[Factors]:
            thin = [expert for expert in experts if isinstance(deltas[expert], LowRank)]
            made = dict(zip(thin, spectral.factors_of_each([deltas[expert] for expert in thin], wanted)))
            for expert in experts:
                if expert not in made:
                    made[expert] = self._factors(deltas[expert], wanted, origins[expert] if origins else None)
            return [made[expert] for expert in experts]

        return found

    def _factors(self, delta: Tensor | Tall, wanted: Wanted | None, origin: Origin = None) -> Factors:
        factors, found = self.store.factors(delta, wanted, origin)
        with self._lock:
            self.asked, self.found = self.asked + 1, self.found + found
        return factors

    @property
    def counts(self) -> tuple[int, int]:
        """How many factorisations were asked for, and how many were kept from before."""
        return self.asked, self.found

    def count_also(self, asked: int, found: int) -> None:
        """Count what another process has asked of its own store."""
        self.asked, self.found = self.asked + asked, self.found + found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it."""
        kept = (
            f"The factors of {self.found} of {self.asked} deltas were kept from before: they were not computed again."
        )
        some = (kept,) * bool(self.found)
        return (*some, *self.store.troubles)


@cache
def shared_store() -> Store:
    """The store of this process, as the environment bounds it."""
    folder, troubles = _place(os.environ.get("MERGELAB_CACHE", ""))
    return Store(folder, _megabytes("MERGELAB_STORE_MB", 512), _megabytes("MERGELAB_CACHE_MB", 2048), troubles)


def _place(asked: str) -> tuple[Path | None, tuple[str, ...]]:
    """The folder that factors are kept in, and what is wrong with it."""
    if asked.lower() == "off":
        return None, ()
    try:
        return Path(asked or "~/.cache/mergelab/factors").expanduser(), ()
    except RuntimeError as error:  # a user without a home, as containers have them
        return None, (f"Factors are not kept on disk ({error}): set MERGELAB_CACHE to a folder, or 'off'.",)


def _megabytes(name: str, default: int) -> int:
    text = os.environ.get(name, "") or str(default)
    if not text.isdecimal():
        raise MergeError(f"{name} must be a whole number of megabytes, not '{text}'.")
    return int(text) << 20


def _content(delta: Tensor | Tall) -> str:
    """What names a delta: the hash of its entries, its shape and its dtype."""
    made_by = f"{_made_by()} {delta.device.type}"
    digest = hashlib.sha256(f"{made_by} {delta.dtype} {tuple(delta.shape)}".encode())
    for piece in delta.pieces if isinstance(delta, Tall) else [delta]:
        flat = piece.cpu().contiguous().as_strided((piece.numel(),), (1,))  # one entry may come with a stride of 0
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def _made_by() -> str:
    return f"{VERSION} {version('torch')} {version('numpy')}"


def _amount(values: Tensor, delta: Tensor | Tall, wanted: Wanted | None) -> str:
    """Which of AMOUNTS is computed where so many vectors are wanted."""
    count = len(values) if wanted is None else wanted(values)
    return "none" if count == 0 else "quarter" if count <= _count("quarter", delta) else "all"


def _in_own_precision(factors: Factors, delta: Tensor | Tall) -> Factors:
    return replace(factors, vectors=factors.vectors.to(delta.dtype).contiguous())


def _count(amount: str, delta: Tensor | Tall) -> int:
    return {"none": 0, "quarter": min(delta.shape) // 4, "all": min(delta.shape)}[amount]


def _on(delta: Tensor | Tall, factors: Factors) -> Factors:
    return replace(factors, values=factors.values.to(delta.device), vectors=factors.vectors.to(delta.device))


def _fits(factors: Factors, delta: Tensor | Tall) -> bool:
    """Whether what was read can be the factors of this delta at all."""
    values, vectors, side = factors.values, factors.vectors, delta.shape[0 if factors.left else 1]
    whole = values.dim() == 1 and vectors.dim() == 2 and vectors.shape[0] == side and vectors.dtype == delta.dtype
    return whole and values.dtype == torch.float64 and vectors.shape[1] <= len(values) <= min(delta.shape)


def _size(factors: Factors) -> int:
    return sum(part.numel() * part.element_size() for part in (factors.values, factors.vectors))


def _digest(about: Mapping[str, str], *parts: Tensor) -> str:
    """The hash of all that an entry says: what it is, and the shapes and numbers of its tensors."""
    said = [about.get(key) for key in ("key", "left", "road")]
    digest = hashlib.sha256(repr([*said, *(tuple(part.shape) for part in parts)]).encode())
    for part in parts:
        digest.update(part.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for path in folder.glob("??/*.fresh"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Every entry of the folder that is there at this moment."""
    found = []
    for path in folder.glob("??/*.safetensors"):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:  # another process was quicker
            continue
    return found
