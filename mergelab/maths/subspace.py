"""The directions that several deltas share: both sides' singular vectors, one basis for all, orthogonal or made so.

Directions whose singular value is below FLOOR of the largest are cut: what rounding adds to a delta of low rank lies
there, and a method that gives every direction the same length would blow it up. Vectors are columns, float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from mergelab.maths.spectral import Delta, Factors, LowRank, dense, factors, joint_factors

FLOOR = 1e-5  # float32 leaves about 1e-6 of σ₁ in the null space of a LoRA delta


@dataclass(frozen=True)
class Triplets:
    """Singular values (k,), descending, with both sides' vectors: left (out, k), right (in, k)."""

    left: Tensor
    values: Tensor
    right: Tensor

    def leading(self, count: int) -> "Triplets":
        """The strongest `count` directions."""
        return Triplets(self.left[:, :count], self.values[:count], self.right[:, :count])

    def above(self, least: Tensor | float) -> "Triplets":
        """The directions whose singular value is larger than `least`."""
        return self.leading(int((self.values > least).sum()))


def triplets(matrix: Delta, found: Factors | None = None) -> Triplets:
    """The singular value decomposition of a matrix (out, in), without what is below FLOOR.

    found: its factors, if they are known; there are as many triplets as these have vectors.
    """
    found = factors(matrix) if found is None else found
    count = min(int((found.values > FLOOR * found.values[:1]).sum()), found.vectors.shape[1])
    values, near = found.values[:count], found.vectors[:, :count]
    far = (pulled(matrix, near).T if found.left else pulled(transposed(matrix), near).T) / values
    return Triplets(near, values, far) if found.left else Triplets(far, values, near)


def pulled(matrix: Delta, vectors: Tensor) -> Tensor:
    """vectorsᵀ M: what a matrix (out, in) does along some output directions (out, k). (k, in)"""
    if isinstance(matrix, LowRank):
        return (vectors.T @ matrix.left.to(vectors)) @ matrix.right.to(vectors)
    return vectors.T @ matrix.to(vectors)


def size(matrix: Delta) -> float:
    """The Frobenius norm of a matrix."""
    if isinstance(matrix, LowRank):
        left, right = matrix.left.double(), matrix.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def joined(parts: Sequence[Triplets]) -> Triplets:
    """Side by side: nothing is sorted, and the vectors of two parts need not be orthogonal."""
    return Triplets(*(torch.cat([getattr(part, side) for part in parts], -1) for side in ("left", "values", "right")))


def orthogonal(vectors: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, P Qᵀ of vectors = P S Qᵀ (its polar factor). (side, k)

    Where the vectors are not independent, only what they span is kept: T equal columns become T columns of length
    1/√T, and not an arbitrary completion.
    """
    p, s, qt = _thin_svd(vectors)
    rank = int((s > FLOOR * s[:1]).sum())
    return p[:, :rank] @ qt[:rank]


def _thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, S and Qᵀ of a tall matrix. LAPACK's own does not converge for some harmless ones; most of their transposes do,
    and what is left is found by the eigenvalues of MᵀM, whose directions below 10⁻⁸ of σ₁ are noise (FLOOR is higher).
    """
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except LinAlgError:
        pass
    try:
        q, s, pt = torch.linalg.svd(matrix.T, full_matrices=False)
        return pt.T, s, q.T
    except LinAlgError:
        squares, q = torch.linalg.eigh(matrix.T @ matrix)
        s, q = squares.clamp(min=0).sqrt().flip(0), q.flip(1)
        return matrix @ q / s.clamp(min=1e-30), s, q.T


def total(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """The weighted sum of deltas; as a product of thin factors where all are, and that is the thinner way."""
    if _thin(deltas):
        lefts = [weight * delta.left for delta, weight in zip(deltas, weights)]
        return LowRank(torch.cat(lefts, 1), torch.cat([delta.right for delta in deltas], 0))
    return sum(weight * dense(delta) for delta, weight in zip(deltas, weights))


def transposed(delta: Delta) -> Delta:
    """The transpose, held in the same way."""
    return LowRank(delta.right.T, delta.left.T) if isinstance(delta, LowRank) else delta.T


def coordinates(deltas: Sequence[Delta]) -> tuple[Tensor, Tensor, Tensor]:
    """[M_1 … M_T] = U S [V_1ᵀ … V_Tᵀ]: the shared basis U (out, k), S (k,), and the S V_iᵀ (expert, k, in)."""
    frame, parts = None, [dense(delta).double() for delta in deltas] if not _thin(deltas) else None
    if parts is None:  # all of it happens in the space that the left factors span
        lefts = [delta.left.double() for delta in deltas]
        frame = torch.linalg.qr(torch.cat(lefts, 1)).Q  # (out, Σ r)
        parts = [(frame.T @ left) @ delta.right.double() for left, delta in zip(lefts, deltas)]
    joint = joint_factors(parts)
    rank = int((joint.values > FLOOR * joint.values[:1]).sum())
    basis = joint.vectors[:, :rank]
    rows = torch.stack([basis.T @ part for part in parts])
    return basis if frame is None else frame @ basis, joint.values[:rank], rows


def _thin(deltas: Sequence[Delta]) -> bool:
    """Whether all are products of thin factors that together are thinner than the matrix."""
    if not deltas or not all(isinstance(delta, LowRank) for delta in deltas):
        return False
    return sum(delta.left.shape[1] for delta in deltas) < min(deltas[0].shape)
