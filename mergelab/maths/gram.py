"""Singular values and left vectors of matrices laid side by side, by the Gram matrix M Mᵀ of their rows in float64.

The product of two float32 numbers is exact in float64, so the eigenvalues of the Gram matrix give singular values to
about 1e-8 of the largest one. The roads here differ in speed alone; where one does not converge, the next one is taken.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from mergelab.maths import lapack

SMALL = 64  # up to so many rows one call for all vectors costs less than several for some
CHUNK = 2**18  # entries that are held in float64 at a time

Count = Callable[[Tensor], int]  # all singular values, descending -> how many vectors
Found = tuple[Tensor, Tensor, str]  # values (k,), vectors (rows, count) or more, the road


def left_factors(matrices: Sequence[Tensor], count: Count) -> Found:
    """All singular values of [M_1 … M_T], float64, descending, and leading left vectors. M_i: (rows, columns).

    Raises LinAlgError where no road leads to an end, as with numbers that are not finite.
    """
    first = matrices[0]
    if not any(matrix[:1].any() or matrix.any() for matrix in matrices):
        return first.new_zeros(len(first), dtype=torch.float64), first.new_zeros(len(first), 0).double(), "zero"
    by_steps = len(first) > SMALL and first.device.type == "cpu" and lapack.available()
    roads = [_some_by_lapack, _all_by_lapack] if by_steps else []
    failed: list[str] = []
    for road in [*roads, _by_eigh]:
        try:
            values, vectors, name = road(matrices, count)
        except (lapack.NotConverged, LinAlgError) as fault:
            failed.append(str(fault).splitlines()[0])
        else:
            return values, vectors, "; ".join([*failed, name])
    values, vectors, name = _by_svd(matrices, count)
    return values, vectors, "; ".join([*failed, name])


def row_gram(matrices: Sequence[Tensor]) -> Tensor:
    """Σ M Mᵀ, (rows, rows) float64; only the upper triangle is sure to be filled."""
    first = matrices[0]
    rows, gram = len(first), first.new_zeros(len(first), len(first), dtype=torch.float64)
    fast = rows > SMALL and gram.device.type == "cpu" and lapack.available()
    for matrix in matrices:
        for part in matrix.split(max(1, CHUNK // max(rows, 1)), 1):
            _add_gram(gram, part.double(), fast)
    if not gram.diagonal().isfinite().all():
        raise LinAlgError("a matrix to factorise has numbers that are not finite")
    return gram


def _add_gram(gram: Tensor, part: Tensor, fast: bool) -> None:
    if not fast:
        gram.addmm_(part, part.T)
    elif part.stride(0) == 1:  # a transposed view, taken as it lies
        lapack.add_gram(gram, part.T.contiguous(), rows=False)
    else:
        lapack.add_gram(gram, part.contiguous(), rows=True)


def _some_by_lapack(matrices: Sequence[Tensor], count: Count) -> Found:
    return _by_lapack(matrices, count, subset=True)


def _all_by_lapack(matrices: Sequence[Tensor], count: Count) -> Found:
    return _by_lapack(matrices, count, subset=False)


def _by_lapack(matrices: Sequence[Tensor], count: Count, subset: bool) -> Found:
    reduced = lapack.tridiagonal(row_gram(matrices))
    eigenvalues = lapack.eigenvalues(reduced)
    values = eigenvalues.clamp(min=0).sqrt()
    vectors, routine = lapack.eigenvectors(reduced, eigenvalues, count(values), subset)
    return values, vectors, f"Gram, {routine}"


def _by_eigh(matrices: Sequence[Tensor], count: Count) -> Found:
    eigenvalues, vectors = torch.linalg.eigh(row_gram(matrices), UPLO="U")
    return eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1), "Gram, eigh"


def _by_svd(matrices: Sequence[Tensor], count: Count) -> Found:
    vectors, values, _ = torch.linalg.svd(torch.cat([matrix.double() for matrix in matrices], 1), full_matrices=False)
    return values, vectors, "svd"
