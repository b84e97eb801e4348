"""What a merge will take, guessed from shapes alone: bytes read and written, memory, time on a plain machine."""

import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from mergelab.errors import MergeError
from mergelab.files.adapter import Adapter
from mergelab.files.checkpoint import Entry
from mergelab.method import Layer, MergeMethod
from mergelab.planning.parts import held
from mergelab.planning.plan import Plan

_READ, _WORK = 300e6, 8e9  # bytes a second from a disk, and float64 operations a second of a core: a plain laptop's
_PROCESS = 400e6  # bytes of memory that Python, torch and their libraries take


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds, to within a factor of two or three on a laptop; disk_free is measured.

    memory: with one worker; each further one takes memory_per_worker more.
    """

    read: int
    written: int
    disk_free: int
    memory: int
    memory_per_worker: int
    seconds: float


def estimate(work: Plan, out: Path = Path(".")) -> Estimate:
    """What a plan's merge would take, written to the disk of `out`."""
    base, experts = work.base.entries, len(work.experts)
    own = [e.checkpoint for e in work.experts if e.checkpoint is not None and e.checkpoint is not work.base]
    read = _size(base) + sum(_size(checkpoint.entries) for checkpoint in own)
    read += sum(_size(e.adapter.entries) for e in work.experts if isinstance(e.adapter, Adapter))
    kept = {*work.names, *work.copied}
    written = _size({n: entry.cast(work.recipe.written_dtype) for n, entry in base.items() if n in kept})
    moved = sum(prod(base[name].shape) for name in work.names) * (experts + 1)
    spectral = is_spectral(work.method)
    work_done = sum(_factorisation(base[n].shape, experts) for n in work.names if spectral and work.decomposes(n))
    seconds = (read + written) / _READ + moved * 20 / _WORK + work_done / _WORK
    tensor = max((held(work, name) for name in work.names), default=0)
    return Estimate(read, written, shutil.disk_usage(out).free, int(_PROCESS) + tensor, tensor, round(seconds, 1))


def is_spectral(method: MergeMethod) -> bool:
    """Whether a method does to a matrix that it may decompose something else than to one that it may not."""
    draw = torch.Generator().manual_seed(0)
    count = min(3, method.most or 3)
    base, *deltas = (torch.randn((3, 3), generator=draw) for _ in range(count + 1))
    layers = [Layer("probe", base, tuple(deltas), torch.ones(count), decompose=either) for either in (True, False)]
    try:
        one, other = (method(layer, **method.checked({})).delta for layer in layers)
    except (MergeError, RuntimeError, ValueError, IndexError):
        return True
    return not torch.allclose(one, other)


def _factorisation(shape: tuple[int, ...], experts: int) -> float:
    """Operations: a Gram matrix and its eigenvectors for every expert, and one more for what they share."""
    short, long = sorted(shape)
    return (experts + 1) * (2.0 * long * short**2 + 9.0 * short**3)


def _size(entries: dict[str, Entry]) -> int:
    return sum(entry.width * prod(entry.shape) for entry in entries.values())
