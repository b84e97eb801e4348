"""Singular values of one matrix: find them, choose how many to keep, truncate, and share a basis among several.

Every factorisation goes through the Gram matrix of the smaller side in float64: the product of two float32 numbers is
exact there, so its eigenvalues give singular values to about 1e-8 of the largest one, and only one side's vectors are
ever formed. A product of two thin factors (LoRA) is factorised without being multiplied out.
"""

from collections.abc import Sequence
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

    def to(self, *where: Any) -> "LowRank":
        """The same on another device or in another dtype, as `Tensor.to`."""
        return LowRank(self.left.to(*where), self.right.to(*where))


Delta = Union[Tensor, LowRank]


@dataclass(frozen=True)
class Factors:
    """Singular values and one side's vectors of a matrix.

    values: (k,) float64, descending, rounding cut off; k is the numerical rank, 0 for a zero matrix.
    vectors: (side, k) float64, orthonormal columns: left singular vectors if `left`, else right ones.
    """

    values: Tensor
    vectors: Tensor
    left: bool


def dense(delta: Delta) -> Tensor:
    """The entries of a delta, whichever way it is held."""
    return delta.dense() if isinstance(delta, LowRank) else delta


def factors(matrix: Delta) -> Factors:
    """The singular values of a matrix (out, in) and the vectors of its smaller side."""
    if isinstance(matrix, LowRank):
        return _thin_factors(matrix)
    left = matrix.shape[0] <= matrix.shape[1]
    tall = (matrix.T if left else matrix).double()  # (long, short)
    return _from_gram(tall.T @ tall, left)


def _from_gram(gram: Tensor, left: bool) -> Factors:
    eigenvalues, vectors = torch.linalg.eigh(gram)
    values, vectors = eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    return _without_noise(values, vectors, left)


def _thin_factors(matrix: LowRank) -> Factors:
    q, r = torch.linalg.qr(matrix.left.double())  # (out, k), (k, r)
    p = torch.linalg.qr(matrix.right.T.double()).R  # (k', r)
    u, values, _ = torch.linalg.svd(r @ p.T, full_matrices=False)
    return _without_noise(values, q @ u, left=True)


def _without_noise(values: Tensor, vectors: Tensor, left: bool) -> Factors:
    rank = int((values > NOISE * values[:1]).sum()) if values.numel() else 0
    return Factors(values[:rank], vectors[:, :rank], left)


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


def truncated(matrix: Delta, factors: Factors, rank: int, gain: float = 1.0) -> Tensor:
    """The leading `rank` directions of a matrix, times `gain`: a projection on one side's vectors. (out, in)"""
    kept = factors.vectors[:, :rank]
    lift = kept * gain
    if isinstance(matrix, LowRank):  # its factors are left ones
        kept, lift = kept.to(matrix.left), lift.to(matrix.left)
        return lift @ ((kept.T @ matrix.left) @ matrix.right)
    kept, lift = kept.to(matrix), lift.to(matrix)
    return lift @ (kept.T @ matrix) if factors.left else (matrix @ lift) @ kept.T


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007); 0 for a zero matrix."""
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def joint_factors(matrices: Sequence[Tensor]) -> Factors:
    """Left singular vectors and values of [M_1 … M_T] side by side. M_i: (out, in).

    From the sum of the Grams (out, out), or by QR where that would be larger than the matrix itself.
    """
    out, columns = matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices)
    if out <= columns:
        return _from_gram(sum(wide @ wide.T for wide in (matrix.double() for matrix in matrices)), left=True)
    q, r = torch.linalg.qr(torch.cat([matrix.double() for matrix in matrices], 1))
    u, values, _ = torch.linalg.svd(r)
    return _without_noise(values, q @ u, left=True)
