"""Singular values of one matrix: find them, choose how many to keep, truncate, and share a basis among several.

Every factorisation goes through the Gram matrix of the smaller side in float64: the product of two float32 numbers is
exact there, so its eigenvalues give singular values to about 1e-8 of the largest one, and only one side's vectors are
ever formed. A product of two thin factors (LoRA) is factorised without being multiplied out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

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


def no_vectors(values: Tensor) -> int:
    """What to ask of `factors` when the spectrum alone is needed."""
    return 0


def factors(matrix: Delta, wanted: Wanted | None = None) -> Factors:
    """The singular values of a matrix (out, in), and leading vectors of its smaller side: all, if `wanted` is None."""
    if isinstance(matrix, LowRank):
        return _thin_factors(matrix, wanted)
    left = matrix.shape[0] <= matrix.shape[1]
    tall = (matrix.T if left else matrix).double()  # (long, short)
    return _from_gram(tall.T @ tall, left, wanted)


def _from_gram(gram: Tensor, left: bool, wanted: Wanted | None) -> Factors:
    eigenvalues, vectors = torch.linalg.eigh(gram)
    values, vectors = eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    return _asked_for(values, vectors, left, wanted, "Gram, torch eigh")


def _thin_factors(matrix: LowRank, wanted: Wanted | None) -> Factors:
    q, r = torch.linalg.qr(matrix.left.double())  # (out, k), (k, r)
    p = torch.linalg.qr(matrix.right.T.double()).R  # (k', r)
    u, values, _ = torch.linalg.svd(r @ p.T, full_matrices=False)
    return _asked_for(values, q @ u, True, wanted, "thin QR, small SVD")


def _asked_for(values: Tensor, vectors: Tensor, left: bool, wanted: Wanted | None, road: str) -> Factors:
    values = values[: int((values > NOISE * values[:1]).sum())] if len(values) else values
    return Factors(values, vectors[:, : _count(values, wanted)], left, road)


def _count(values: Tensor, wanted: Wanted | None) -> int:
    return len(values) if wanted is None else min(wanted(values), len(values))


def ranks_keeping(values: Tensor, shares: Tensor) -> Tensor:
    """For each share, the smallest r whose leading r values sum to at least that share of all: the nuclear norm's rule.

    values: (k,) descending; shares: any shape, in 0…1. At least 1 where there is any value at all, else 0.
    """
    mass = values.double().cumsum(0)
    if not len(mass):
        return torch.zeros_like(shares, dtype=torch.long)
    wanted = shares.to(mass) * mass[-1]
    return (torch.searchsorted(mass, wanted) + 1).clamp(1, len(mass))


def rank_keeping(values: Tensor, share: float) -> int:
    """The smallest rank that keeps `share` (0…1) of the sum of the singular values."""
    return int(ranks_keeping(values, torch.tensor(share, dtype=torch.float64)))


def leading(matrix: Delta, factors: Factors, rank: int, gain: float = 1.0) -> LowRank:
    """The leading `rank` directions of a matrix, times `gain`: a projection on one side's vectors."""
    if isinstance(matrix, LowRank):  # its factors are left ones
        kept = factors.vectors[:, :rank].to(matrix.left)
        return LowRank(gain * kept, (kept.T @ matrix.left) @ matrix.right)
    kept = factors.vectors[:, :rank].to(matrix)
    return LowRank(gain * kept, kept.T @ matrix) if factors.left else LowRank(matrix @ (gain * kept), kept.T)


def total(parts: Sequence[LowRank]) -> Tensor:
    """The sum of thin products, as one product. (out, in)"""
    return torch.cat([part.left for part in parts], 1) @ torch.cat([part.right for part in parts], 0)


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def joint_factors(matrices: Sequence[Tensor], wanted: Wanted | None = None) -> Factors:
    """Left singular vectors and values of [M_1 … M_T] side by side. M_i: (out, in).

    From the sum of the Grams (out, out), or by QR where that would be larger than the matrix itself.
    """
    out, columns = matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices)
    if out <= columns:
        gram = sum(wide @ wide.T for wide in (matrix.double() for matrix in matrices))
        return _from_gram(gram, True, wanted)
    q, r = torch.linalg.qr(torch.cat([matrix.double() for matrix in matrices], 1))
    u, values, _ = torch.linalg.svd(r)
    return _asked_for(values, q @ u, True, wanted, "QR, small SVD")
