"""Part of a symmetric eigendecomposition, by the LAPACK that numpy's wheel carries. Float64, on the CPU, in place.

torch.linalg.eigh finds every eigenvector or none. The steps it is made of are separate in LAPACK: reduce to tridiagonal
form, find all eigenvalues, then the vectors of the largest few alone, which is several times less work. numpy brings
OpenBLAS as a shared library with 64-bit integers; it is called through ctypes, which lets other Python threads run.

The library is tried on a small known problem when it is first used. `available()` says whether it may be used.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

PREFIX, SUFFIX = "scipy_", "_64_"  # how numpy's wheels name the symbols
ROUTINES = ("dsyrk", "dsytrd", "dsterf", "dstein", "dstedc", "dormtr")
BLOCK = 12  # columns that dsytrd reduces at a time: its own 32 costs a tenth more at the sizes that are met here
PANELS = 16, 8, 4  # where few vectors are found, it is up to a 16th, an 8th, a quarter of all, each part on its own
ORTHOGONAL = 1e-9  # found vectors must be orthonormal to this, and solve the problem to this share of the largest value


class NotConverged(ArithmeticError):
    """A LAPACK routine did not reach an answer that is good enough."""


@dataclass(frozen=True)
class Tridiagonal:
    """A symmetric matrix as Q T Qᵀ. reflectors: (n, n), Q as LAPACK holds it; diagonal: (n,), off: (n - 1,) of T."""

    reflectors: Tensor
    scales: Tensor
    diagonal: Tensor
    off: Tensor


@cache
def available() -> bool:
    """Whether the library is there, has all that is needed, and solves a known problem."""
    try:
        return _solves_a_known_problem()
    except (OSError, AttributeError, NotConverged):
        return False


def add_gram(gram: Tensor, matrix: Tensor, rows: bool) -> None:
    """Add M Mᵀ (`rows`) or MᵀM to a lower triangle, in place. gram: (n, n); matrix: contiguous; both float64.

    The triangle is the lower one of LAPACK, which counts by columns: the upper one for torch.
    """
    n, depth = matrix.shape if rows else matrix.shape[::-1]
    turned, stride = (b"T", depth) if rows else (b"N", n)
    one = _real(1.0)
    _call("dsyrk", b"L", turned, _int(n), _int(depth), one, matrix, _int(stride), one, gram, _int(n))


def tridiagonal(gram: Tensor) -> Tridiagonal:
    """Reduce a symmetric matrix (n, n) to tridiagonal form. `gram` is overwritten; its triangle as in `add_gram`."""
    n = len(gram)
    diagonal, off, scales = gram.new_empty(n), gram.new_empty(n), gram.new_empty(n)
    work = gram.new_empty(BLOCK * n)  # its size is what tells dsytrd
    _solve("dsytrd", b"L", _int(n), gram, _int(n), diagonal, off, scales, work, _int(len(work)))
    return Tridiagonal(gram, scales, diagonal, off[:-1])


def eigenvalues(t: Tridiagonal) -> Tensor:
    """All eigenvalues, descending. (n,)"""
    values, off = t.diagonal.clone(), t.off.clone()
    _solve("dsterf", _int(len(values)), values, off)
    return values.flip(0)


def eigenvectors(t: Tridiagonal, values: Tensor, count: int, subset: bool = True) -> tuple[Tensor, str]:
    """The vectors of the largest eigenvalues, `count` or more, descending, and the routine that found them. (n, …)

    values: as `eigenvalues` gives them. subset: up to a quarter of them are found by themselves, else all. They come in
    panels, and those of one panel are the same to the bit however many others are found. Raises NotConverged.
    """
    n = len(values)
    if count == 0:
        return values.new_empty(n, 0), "dsterf"
    if not subset or 4 * count > n:
        return _turned_back(t, _all(t)).flip(0).T, "dstedc"
    bounds = [(start, end) for start, end in pairwise((0, *(n // part for part in PANELS))) if start < min(count, end)]
    found = values.new_empty(0, n)
    for start, end in bounds:
        found = torch.cat([found, _panel(t, values[start:end], found)])
    _certify(t, found, values[: len(found)])
    panels = found.split([end - start for start, end in bounds])
    return torch.cat([_turned_back(t, panel.clone()) for panel in panels]).T, "dstein"


def _panel(t: Tridiagonal, values: Tensor, before: Tensor) -> Tensor:
    """Vectors of T for some eigenvalues, as rows, made orthogonal to the rows of `before`. (len(values), n)

    Where values of two panels are as good as equal their vectors are any that span the same space, and are sorted out
    here; how well that went is for `_certify` to say.
    """
    found = _by_inverse_iteration(t, values.flip(0)).flip(0)
    overlap = found @ before.T
    if overlap.numel() and overlap.abs().max() > ORTHOGONAL:
        found = torch.linalg.qr((found - overlap @ before).T).Q.T
        found = torch.linalg.qr((found - (found @ before.T) @ before).T).Q.T.contiguous()
    return found


def _turned_back(t: Tridiagonal, found: Tensor) -> Tensor:
    """Rows as vectors of T, made those of the whole matrix, in place: Q times each. (count, n)"""
    count, n = found.shape
    work = found.new_empty(64 * (n + 65))
    into = (_int(n), _int(count), t.reflectors, _int(n), t.scales, found, _int(n), work, _int(len(work)))
    _solve("dormtr", b"L", b"L", b"N", *into)
    return found


def _by_inverse_iteration(t: Tridiagonal, values: Tensor) -> Tensor:
    """dstein, on the whole matrix as one block, so that vectors are orthogonal across its blocks too. (count, n)"""
    n, count = len(t.diagonal), len(values)
    found, work = values.new_empty(count, n), values.new_empty(5 * n)
    block, split = _ints(n, fill=1), _ints(n, fill=n)
    size = (_int(n), t.diagonal, t.off, _int(count), values.contiguous(), block, split, found, _int(n))
    _solve("dstein", *size, work, _ints(n), _ints(count))
    return found


def _all(t: Tridiagonal) -> Tensor:
    """dstedc, divide and conquer. (n, n)"""
    n = len(t.diagonal)
    found, work, whole = t.diagonal.new_empty(n, n), t.diagonal.new_empty(1 + 4 * n + n * n), _ints(3 + 5 * n)
    size = (_int(n), t.diagonal.clone(), t.off.clone(), found, _int(n), work, _int(len(work)), whole, _int(len(whole)))
    _solve("dstedc", b"I", *size)
    return found


def _certify(t: Tridiagonal, found: Tensor, values: Tensor) -> None:
    """Raise NotConverged unless the rows of `found` are orthonormal eigenvectors of T with these values."""
    image = found * (t.diagonal - values[:, None])
    image[:, :-1] += found[:, 1:] * t.off
    image[:, 1:] += found[:, :-1] * t.off
    skew = found @ found.T - torch.eye(len(found), dtype=found.dtype)
    if not (skew.abs().max() < ORTHOGONAL and image.abs().max() <= ORTHOGONAL * values.abs().max()):  # NaN too
        raise NotConverged("the eigenvectors found are not good enough")


def _solves_a_known_problem() -> bool:
    """The matrix min(i, j), of eigenvalues 1 / (2 - 2 cos((2k - 1)π / (2n + 1))), by every way there is."""
    n, few = 9, 4
    staircase = torch.ones(n, n, dtype=torch.float64).tril()
    whole, one = staircase @ staircase.T, torch.eye(few, dtype=torch.float64)
    known = 1 / (2 - 2 * torch.cos((2 * torch.arange(n, dtype=torch.float64) + 1) * torch.pi / (2 * n + 1)))
    for rows in (True, False):
        gram = torch.zeros_like(whole)
        add_gram(gram, staircase if rows else staircase.T.contiguous(), rows)
        t = tridiagonal(gram)
        values = eigenvalues(t)
        for way in (_by_inverse_iteration, lambda t, values: _all(t)[-len(values) :]):
            found = _turned_back(t, way(t, values[:few].flip(0)))
            equal = torch.allclose(found @ whole, known[:few].flip(0)[:, None] * found, atol=1e-11)
            if not (equal and torch.allclose(found @ found.T, one, atol=1e-12)):
                return False
    return torch.allclose(values, known, rtol=1e-12)


@cache
def _library() -> dict[str, ctypes._CFuncPtr]:
    """The routines by name. OpenBLAS is told to use one thread: tensors are what runs in parallel here."""
    spec = find_spec("numpy")
    if spec is None or spec.origin is None:
        raise OSError("there is no numpy")
    package = Path(spec.origin).parent
    places = [package.with_name("numpy.libs"), package / ".dylibs", package / ".libs"]
    files = [file for place in places for file in sorted(place.glob("libscipy_openblas64_*"))]
    if not files:
        raise OSError("numpy brings no OpenBLAS of its own")
    library = ctypes.CDLL(str(files[0]))
    library[f"{PREFIX}openblas_set_num_threads64_"](ctypes.c_int(1))
    routines = {routine: library[PREFIX + routine + SUFFIX] for routine in ROUTINES}
    for function in routines.values():
        function.restype = None
    return routines


def _call(routine: str, *arguments: object) -> None:
    given = [_reference(argument) for argument in arguments]
    lengths = [ctypes.c_size_t(1) for argument in arguments if isinstance(argument, bytes)]  # Fortran wants these last
    _library()[routine](*given, *lengths)


def _solve(routine: str, *arguments: object) -> None:
    info = _int(0)
    _call(routine, *arguments, info)
    if info.value:
        raise NotConverged(f"{routine} answered {info.value}")


def _reference(argument: object) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.byref(argument)


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _real(value: float) -> ctypes.c_double:
    return ctypes.c_double(value)


def _ints(count: int, fill: int = 0) -> Tensor:
    return torch.full((max(count, 1),), fill, dtype=torch.int64)
