"""Directions: the angles between several tensors, and ways between them that keep their length.

All of it goes through the Gram matrix of the tensors, in float64 and piece by piece: what is on the arc between a few
points is a combination of those points, so that only its coefficients need to be found.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 20


def lengths(stack: Tensor) -> Tensor:
    """The Euclidean length of each tensor. stack: (expert, …); (expert,) float64."""
    return torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in stack])


def gram(stack: Tensor) -> Tensor:
    """The inner products between tensors, row by row. stack: (expert, row, n); (row, expert, expert) float64."""
    count, rows, _ = stack.shape
    products = torch.zeros(rows, count, count, dtype=torch.float64, device=stack.device)
    for piece in stack.split(max(1, _CHUNK // max(rows, 1)), dim=2):
        wide = piece.double().transpose(0, 1)  # (row, expert, piece)
        products += wide @ wide.mT
    return products


def whole_gram(stack: Tensor) -> Tensor:
    """The inner products between whole tensors. stack: (expert, …); (expert, expert) float64."""
    return gram(stack.reshape(len(stack), 1, -1) if stack.numel() else stack.new_zeros(len(stack), 1, 0))[0]


def cosines(products: Tensor, least: float = 0.0) -> Tensor:
    """The cosines that a Gram matrix (…, expert, expert) stands for, in −1 … 1; 0 beside a tensor of zero.

    least: products of two lengths are taken to be at least this.
    """
    sizes = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = (sizes[..., None] * sizes[..., None, :]).clamp(min=least)
    return torch.where(scale > 0, products / torch.where(scale > 0, scale, 1), 0).clamp(-1, 1)


def arc(cosine: Tensor, share: float, straight: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of the point at `share` (0 … 1) of the arc between two points (Shoemake 1985).

    cosine: any shape. Where `straight` holds, the angle is too small, or the way not unique, and the line is taken.
    """
    angle = torch.acos(torch.where(straight, 0, cosine))
    first, second = torch.sin((1 - share) * angle) / angle.sin(), torch.sin(share * angle) / angle.sin()
    return torch.where(straight, 1 - share, first), torch.where(straight, share, second)


def karcher_mean(products: Tensor, shares: Tensor, steps: int, tolerance: float) -> Tensor:
    """The point of the unit sphere whose weighted sum of squared angles to some unit points is least.

    products: their Gram matrix (k, k); shares: (k,), summing to 1; (k,) are the mean's coefficients. A point opposite
    to the mean has no direction to pull in, and does not pull.
    """
    mean = _unit(shares, products)
    if mean is None:
        mean = torch.eye(len(shares), dtype=shares.dtype, device=shares.device)[0]
    for _ in range(steps):
        cosine = (products @ mean).clamp(-1, 1)
        angle = cosine.acos()
        pulls = (angle > tolerance) & (angle < torch.pi - tolerance)
        pull = torch.where(pulls, shares * angle / torch.where(pulls, angle.sin(), 1), 0)
        tangent = pull - (pull @ cosine) * mean
        length = _length(tangent, products)
        if length < tolerance:
            break
        mean = _unit(length.cos() * mean + length.sin() / length * tangent, products)
    return mean


def _length(coefficients: Tensor, products: Tensor) -> Tensor:
    return (coefficients @ products @ coefficients).clamp(min=0).sqrt()


def _unit(coefficients: Tensor, products: Tensor) -> Tensor | None:
    length = _length(coefficients, products)
    return coefficients / length if length > 1e-12 else None
