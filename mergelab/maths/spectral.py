"""Singular values of one matrix: find them, choose how many to keep, truncate, and share a basis among several.

Every factorisation goes through the Gram matrix of the smaller side in float64: the product of two float32 numbers is
exact there, so its eigenvalues give singular values to about 1e-8 of the largest one, and only one side's vectors are
ever formed. A product of two thin factors (LoRA) is factorised without being multiplied out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from mergelab.maths.gram import CHUNK, SMALL, left_factors
from mergelab.maths.tall import Pieces, Tall

STRONG = 1e-4  # singular values above this share of the largest are known well enough to divide by
APART = 1e-3  # columns with as much of their own are orthonormal to 1e-10 when their Cholesky factor is taken out
EVEN = 1e-9  # a share that is reached but for so much is reached: the rest is rounding
NOISE = 1e-7  # singular values below this share of the largest are rounding, not signal


@dataclass(frozen=True)
class LowRank:
    """The matrix left @ right without its entries. left: (out, r); right: (r, in)."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> torch.Size:
        """(out, in)"""
        return torch.Size((self.left.shape[0], self.right.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """That of both factors."""
        return self.left.dtype

    def dense(self) -> Tensor:
        """The matrix itself, (out, in)."""
        return self.left @ self.right

    @property
    def T(self) -> "LowRank":  # noqa: N802 (as Tensor.T)
        """The transpose, (in, out)."""
        return LowRank(self.right.T, self.left.T)

    def to(self, *where: Any) -> "LowRank":
        """The same on another device or in another dtype, as `Tensor.to`."""
        return LowRank(self.left.to(*where), self.right.to(*where))


Delta = Union[Tensor, LowRank]
Wanted = Callable[[Tensor], int]  # all singular values, descending -> how many leading vectors are needed


@dataclass(frozen=True)
class Factors:
    """All singular values of a matrix, and the leading vectors of one side.

    values: (k,) float64, descending, rounding cut off; k is the numerical rank, 0 for a zero matrix.
    vectors: (side, r) float64, orthonormal columns, the r <= k that were asked for: left singular vectors if `left`,
    else right ones. road: how they were computed.
    """

    values: Tensor
    vectors: Tensor
    left: bool
    road: str = ""

    def suffice(self, wanted: Wanted | None) -> bool:
        """Whether the vectors that are wanted are among these."""
        return self.vectors.shape[1] >= _count(self.values, wanted)


def dense(delta: Delta) -> Tensor:
    """The entries of a delta, whichever way it is held."""
    return delta.dense() if isinstance(delta, LowRank) else delta


def nothing(matrix: Tensor) -> Factors:
    """The factors of a matrix that is known to be zero."""
    rows, columns = matrix.shape
    return Factors(matrix.new_zeros(0, dtype=torch.float64), matrix.new_zeros(min(rows, columns), 0), rows <= columns)


def no_vectors(values: Tensor) -> int:
    """What to ask of `factors` when the spectrum alone is needed."""
    return 0


def factors(matrix: Delta | Tall, wanted: Wanted | None = None) -> Factors:
    """The singular values of a matrix (out, in) and leading vectors of its smaller side: all, if `wanted` is None."""
    if isinstance(matrix, Tall):
        return replace(_side_by_side(matrix.turned, wanted), left=False)
    if matrix.shape[0] <= matrix.shape[1]:
        return joint_factors([matrix], wanted)
    return replace(joint_factors([matrix.T], wanted), left=False)


def factors_of_each(matrices: Sequence[Delta], wanted: Wanted | None = None) -> list[Factors]:
    """The `factors` of several matrices; thin products of one shape and rank take one turn together."""
    alike: dict[tuple, list[int]] = {}
    for i, matrix in enumerate(matrices):
        thin = isinstance(matrix, LowRank) and matrix.left.shape[1] <= min(SMALL, *matrix.shape)
        alike.setdefault((matrix.left.shape, matrix.right.shape, matrix.dtype) if thin else (i,), []).append(i)
    found: dict[int, Factors] = {}
    for kind, members in alike.items():
        some = [matrices[i] for i in members]
        together = _factors_together(some, wanted) if len(kind) > 1 else None
        found |= zip(members, together or [factors(matrix, wanted) for matrix in some])
    return [found[i] for i in range(len(matrices))]


def _factors_together(matrices: Sequence[LowRank], wanted: Wanted | None) -> list[Factors] | None:
    """The factors of thin products of one shape, by Cholesky factors of their outer sides; None if one needs more."""
    left = matrices[0].shape[0] <= matrices[0].shape[1]
    matrices = matrices if left else [matrix.T for matrix in matrices]
    outer = torch.stack([matrix.left for matrix in matrices]).double()  # (matrix, side, r)
    inner = torch.stack([matrix.right for matrix in matrices]).double()
    r, failed = torch.linalg.cholesky_ex(outer.mT @ outer, upper=True)
    own = r.diagonal(dim1=1, dim2=2)
    inside = r @ inner
    gram = inside @ inside.mT
    if not ((failed == 0) & (own.amin(1) > APART * own.amax(1)) & gram.isfinite().all((1, 2))).all():
        return None
    try:
        squares, turned = torch.linalg.eigh(gram)
    except LinAlgError:
        return None
    found = []
    for side, triangle, values, vectors in zip(outer, r, squares.flip(1).clamp(min=0).sqrt(), turned.flip(2)):
        values = _signal(values)
        some = torch.linalg.solve_triangular(triangle, vectors[:, : _count(values, wanted)], upper=True)
        found.append(Factors(values, side @ some, left, "Cholesky, Gram, eigh"))
    return found


def joint_factors(matrices: Sequence[Delta], wanted: Wanted | None = None, left: bool = True) -> Factors:
    """Singular values and leading left vectors of [M_1 … M_T] side by side. M_i: (out, in).

    left: False takes right vectors, too, where the rows are more than all columns.
    Thin products are not multiplied out: with Q R = [B_1 … B_T], what is factorised is [R_1 A_1 … R_T A_T].
    """
    out, columns = matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices)
    if all(isinstance(matrix, LowRank) for matrix in matrices) and sum(m.left.shape[1] for m in matrices) < out:
        r, turned, road = _triangle(torch.cat([m.left for m in matrices], 1).double())  # (k, Σ r_i)
        parts = r.split([m.left.shape[1] for m in matrices], 1)
        inside = joint_factors([part @ m.right.double() for part, m in zip(parts, matrices)], wanted)
        return replace(inside, vectors=turned(inside.vectors), road=f"{road}, {inside.road}")
    whole = [dense(matrix) for matrix in matrices]
    if out <= columns:
        return _side_by_side(whole, wanted)
    if left:
        return _one_above_the_other(torch.cat(whole, 1), wanted)
    step = max(1, CHUNK // columns)
    rows = Pieces(-(-out // step), lambda i: torch.cat([matrix[i * step : (i + 1) * step] for matrix in whole], 1))
    return factors(Tall((out, columns), rows), wanted)


def _triangle(tall: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], str]:
    """R of M = Q R, y -> Q y, and the road: by MᵀM, at half the price, where no column is nearly a sum of others.

    tall: M, (rows, k) float64. R: (k, k); y: (k, some).
    """
    r, failed = torch.linalg.cholesky_ex(tall.T @ tall, upper=True)
    own = r.diagonal()  # what of each column the ones before it do not hold
    if not failed and own.min() > APART * own.max():
        return r, lambda y: tall @ torch.linalg.solve_triangular(r, y, upper=True), "Cholesky"
    q, r = torch.linalg.qr(tall)
    return r, lambda y: q @ y, "QR"


def _side_by_side(matrices: Sequence[Tensor], wanted: Wanted | None) -> Factors:
    values, vectors, road = left_factors(matrices, lambda values: _count(_signal(values), wanted))
    values = _signal(values)
    return Factors(values, vectors[:, : _count(values, wanted)], True, road)


def _one_above_the_other(tall: Tensor, wanted: Wanted | None) -> Factors:
    """Left factors of a matrix with fewer columns than rows, by way of its right ones: U = M V / σ."""
    right = _side_by_side([tall.T], wanted)
    count = right.vectors.shape[1]
    if count == 0 or right.values[count - 1] > STRONG * right.values[0]:
        return replace(right, vectors=tall.double() @ (right.vectors / right.values[:count]))
    q, r = torch.linalg.qr(tall.double())  # divided by a weak σ, vectors would not be orthogonal
    inside = _side_by_side([r], wanted)
    return replace(inside, vectors=q @ inside.vectors, road=f"QR, {inside.road}")


def _signal(values: Tensor) -> Tensor:
    return values[: int((values > NOISE * values[:1]).sum())] if len(values) else values


def _count(values: Tensor, wanted: Wanted | None) -> int:
    return len(values) if wanted is None else min(wanted(values), len(values))


def ranks_keeping(values: Tensor, shares: Tensor) -> Tensor:
    """For each share, the smallest r whose leading r values sum to at least that share of all: the nuclear norm's rule.

    values: (k,) descending; shares: any shape, in 0…1. At least 1 where there is any value at all, else 0.
    """
    mass = values.double().cumsum(0)
    if not len(mass):
        return torch.zeros_like(shares, dtype=torch.long)
    found = torch.searchsorted(mass, (shares.to(mass) - EVEN) * mass[-1]) + 1
    return torch.where(shares < 1, found.clamp(1, len(mass)), len(mass))


def rank_keeping(values: Tensor, share: float) -> int:
    """The smallest rank that keeps `share` (0…1) of the sum of the singular values."""
    if share >= 1 or not len(values):
        return len(values)
    mass = values.double().cumsum(0)
    return min(int(torch.searchsorted(mass, (share - EVEN) * mass[-1])) + 1, len(values))


def projected(basis: Tensor, matrix: Delta) -> Tensor:
    """basisᵀ @ matrix, (k, in): in the matrix's own precision but no less than float32, a thin product in float64."""
    if isinstance(matrix, LowRank):
        return basis.double().T @ matrix.left.double() @ matrix.right.double()
    matrix = matrix.to(at_least_single(matrix.dtype))
    return basis.to(matrix).T @ matrix


def coordinates(matrix: Delta, factors: Factors, rank: int, known: Tensor | None = None) -> Tensor:
    """U_rᵀ M, (rank, in); where the factors have right vectors V_rᵀ Mᵀ, (rank, out). Precision as in `projected`.

    known: these coordinates for another rank, to take over what both have. Some rows are computed at a time, always the
    same ones together, so that no bit depends on what was known.
    """
    given, step = matrix if factors.left else matrix.T, max(16, len(factors.vectors) // 16)
    whole = 0 if known is None else min(len(known), rank) // step * step
    bases = [factors.vectors[:, start : min(start + step, rank)] for start in range(whole, max(rank, 1), step)]
    fresh = [projected(basis.contiguous(), given) for basis in bases]
    return torch.cat(fresh if known is None else [known[:whole], *fresh])


def leading(matrix: Delta, factors: Factors, rank: int, gain: float = 1.0, known: Tensor | None = None) -> LowRank:
    """The leading `rank` directions of a matrix, times `gain`: a projection on one side's vectors.

    known: their `coordinates`, where somebody has them.
    """
    right = coordinates(matrix, factors, rank) if known is None else known
    found = LowRank(gain * factors.vectors[:, :rank], right).to(at_least_single(matrix.dtype))
    return found if factors.left else found.T


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The precision to compute in where numbers are held in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def total(parts: Sequence[LowRank]) -> Tensor:
    """The sum of thin products, as one product. (out, in)"""
    return torch.cat([part.left for part in parts], 1) @ torch.cat([part.right for part in parts], 0)


def weighted_sum(matrices: Sequence[Delta], weights: Sequence[float]) -> Tensor:
    """Σ w_i M_i, with its entries, however each is held."""
    thin = [LowRank(w * m.left, m.right) for w, m in zip(weights, matrices) if isinstance(m, LowRank)]
    full = [(w, m) for w, m in zip(weights, matrices) if not isinstance(m, LowRank)]
    result = total(thin) if thin else full[0][1] * full[0][0]
    for weight, matrix in full if thin else full[1:]:
        result.add_(matrix, alpha=weight)
    return result


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())
