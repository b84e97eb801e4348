"""Lengths of, and angles between, the changes of several experts, without stacking them or multiplying them out.

Float32 tensors are summed in float32 over short pieces and in float64 over those: a few millionths of the answer, at a
tenth of the price of float64 throughout. Where squares leave float32's range, all is done again in float64.
"""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from mergelab.maths.spectral import Delta, LowRank

_PIECE = 1 << 17  # numbers summed at a time: few enough for float32, and for a core's cache
_TINY = 1e-24  # a sum of squares above this loses nothing that counts to squares that float32 cannot hold


def finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite. A sum shows that at once, unless it overflows itself."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def unmoved(base: Tensor) -> Tensor:
    """A delta of zeros in the shape of `base` that takes no memory."""
    return base.new_zeros(()).expand(base.shape)


def is_unmoved(delta: Delta) -> bool:
    """Whether a delta is one that `unmoved` made: known to be zero without a look at it."""
    return isinstance(delta, Tensor) and not any(delta.stride()) and delta.numel() > 0 and delta.flatten()[0] == 0


def norm(delta: Delta) -> float:
    """The Frobenius norm."""
    return math.sqrt(squared_norm(delta))


def squared_norm(delta: Delta) -> float:
    """The sum of the squares of all entries."""
    if isinstance(delta, LowRank):
        return float(_thin_products([delta]))
    return 0.0 if is_unmoved(delta) else _dense_products([delta])[0][0]


def inner_products(deltas: Sequence[Delta]) -> Tensor:
    """⟨Δ_i, Δ_j⟩ of some deltas of one shape: (expert, expert) float64, on the CPU.

    Two low-rank deltas: ⟨BA, DC⟩ = ⟨BᵀD, ACᵀ⟩; a low-rank and a dense one: ⟨BA, Δ⟩ = ⟨A, BᵀΔ⟩.
    """
    whole = [i for i, delta in enumerate(deltas) if isinstance(delta, Tensor) and not is_unmoved(delta)]
    if len(whole) == len(deltas):
        return torch.tensor(_dense_products(list(deltas)), dtype=torch.float64)
    gram = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    if whole:
        index = torch.tensor(whole)
        gram[index[:, None], index] = torch.tensor(_dense_products([deltas[i] for i in whole]), dtype=torch.float64)
    if thin := [i for i, delta in enumerate(deltas) if isinstance(delta, LowRank)]:
        index = torch.tensor(thin)
        gram[index[:, None], index] = _thin_products([deltas[i] for i in thin]).cpu()
    for i, j in product(thin, whole):
        gram[i, j] = gram[j, i] = _with_thin(deltas[i], deltas[j])
    return gram


def mean_cosine(products: Tensor) -> float:
    """The mean cosine between two of those whose inner products are given, zeros left out; 0 where there are no two."""
    moved = products.diagonal() > 0
    products = products[moved][:, moved]
    count, lengths = len(products), products.diagonal().sqrt()
    if count < 2:
        return 0.0
    return float(((products / lengths / lengths[:, None]).sum() - count) / (count * (count - 1)))


def _dense_products(tensors: list[Tensor]) -> list[list[float]]:
    flat = [tensor.reshape(-1) for tensor in tensors]
    rows = _by_pieces(flat, flat[0].dtype)
    sound = all(math.isfinite(entry) for row in rows for entry in row)
    if not sound or any(row[i] <= _TINY for i, row in enumerate(rows)):
        rows = _by_pieces(flat, torch.float64)
    return rows


def _by_pieces(flat: list[Tensor], dtype: torch.dtype) -> list[list[float]]:
    if flat[0].device.type == "cpu":
        return _dot_by_dot(flat, dtype)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat[0].device)
    for parts in zip(*[tensor.split(_PIECE << 5) for tensor in flat]):
        piece = torch.stack(parts).to(dtype)  # (expert, piece)
        total += piece @ piece.T
    return total.tolist()


def _dot_by_dot(flat: list[Tensor], dtype: torch.dtype) -> list[list[float]]:
    """Two pieces at a time as they lie: on the CPU, where one product of all would cost a copy and as much again."""
    count = len(flat)
    rows = [[0.0] * count for _ in flat]
    for parts in zip(*[tensor.split(_PIECE) for tensor in flat]):
        parts = [part.to(dtype) for part in parts]
        for i, j in combinations_with_replacement(range(count), 2):
            rows[j][i] = rows[i][j] = rows[i][j] + float(torch.dot(parts[i], parts[j]))
    return rows


def _thin_products(deltas: list[LowRank]) -> Tensor:
    """Of low-rank deltas with one another: their factors side by side, multiplied at once. (delta, delta) float64"""
    left, right = torch.cat([d.left for d in deltas], 1).double(), torch.cat([d.right for d in deltas]).double()
    owner = torch.repeat_interleave(torch.tensor([len(d.right) for d in deltas])).to(left.device)
    rows = left.new_zeros(len(deltas), len(right)).index_add(0, owner, (left.T @ left) * (right @ right.T))
    return left.new_zeros(len(deltas), len(deltas)).index_add(1, owner, rows)


def _with_thin(thin: LowRank, other: Tensor) -> float:
    return float((thin.left.double().T @ other.double() * thin.right.double()).sum())
