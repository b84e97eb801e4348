"""Deltas with entries left out, at random or by size, and the sums of what is left.

"As mergekit" here means its version 0.1.5, whose results these equal.
"""

import torch
from torch import Tensor

from mergelab.maths.signs import agreeing, divided, elected, threshold_keeping


def middling(values: Tensor, count: int, top: int) -> Tensor:
    """The `count` entries that follow the `top` largest ones in magnitude; the others are zero.

    Where too few follow, fewer large ones are left out, so that `count` entries stay. Entries that tie with the first
    or the last are kept too.
    """
    if count <= 0:
        return torch.zeros_like(values)
    sizes, top = values.abs(), min(top, values.numel() - count)
    most = threshold_keeping(sizes, top + 1) if top + 1 < values.numel() else sizes.min()
    least = threshold_keeping(sizes, top + count)
    return torch.where((sizes >= least) & (sizes <= most), values, 0)


def ranks_in_rows(values: Tensor) -> Tensor:
    """The rank of each entry by magnitude, 0 for the smallest … 1 for the largest of its row; ½ in rows of one.

    A row runs along dimension 1 (along the whole tensor, if it has fewer dimensions), as mergekit has it.
    """
    rows = values.reshape(1, -1) if values.dim() < 2 else values
    ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(torch.float64)
    span = rows.shape[1] - 1
    return (ranks / span if span > 0 else torch.full_like(ranks, 0.5)).view_as(values)


def at_l1(kept: Tensor, values: Tensor) -> Tensor:
    """What is kept of some values, scaled to their sum of magnitudes; as it is where nothing is kept."""
    before, after = values.abs().sum(dtype=torch.float64), kept.abs().sum(dtype=torch.float64)
    return kept * (before / after).to(kept.dtype) if after > 0 else kept


def shares_kept(stack: Tensor) -> tuple[float, ...]:
    """Of each tensor of the stack, the share of entries that are not zero."""
    return tuple(int((values != 0).sum()) / max(values.numel(), 1) for values in stack)


def summed(weighted: Tensor, weights: Tensor, *, agree: bool, normalize: bool) -> Tensor:
    """The sum of weighted deltas (expert, …), as mergekit has it.

    agree: leave out the entries whose sign is not the sum's (a zero counts as +). normalize: divide by the weights of
    those that took part, where these do not add up to zero.
    """
    if agree:
        weighted = agreeing(weighted, elected(weighted.sum(0), tie="plus"))
    total = weighted.sum(0)
    if not normalize:
        return total
    column = weights.to(total).view(-1, *[1] * total.dim())
    mass = ((weighted != 0) * column).sum(0) if agree else column.sum(0)
    return divided(total, mass.to(total).expand_as(total))
