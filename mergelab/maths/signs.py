"""Entries of several tensors that agree or disagree: trim the small ones, elect a sign, average those that agree.

All treat each entry on its own. Written in float arithmetic: masks of booleans are several times slower.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mergelab.maths.selection import kth_largest

BLOCK = 2**16  # entries of each tensor that are worked on together: few enough to stay in the cache


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same entries of tensors of one size, flat, block by block; of a contiguous tensor these are views.

    On an accelerator all entries are one block.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    size = BLOCK if flat[0].device.type == "cpu" else max(1, flat[0].numel())
    return zip(*[tensor.split(size) for tensor in flat])


def threshold_keeping(magnitudes: Tensor, count: int) -> Tensor:
    """The count-th largest of some magnitudes (any shape): entries at or above it are the ones to keep.

    Entries that tie with it are all kept. 0 keeps none (the answer is infinite).
    """
    if count <= 0:
        return magnitudes.new_tensor(float("inf"))
    if count >= magnitudes.numel():
        return magnitudes.new_tensor(0.0)
    return kth_largest(magnitudes, count)


def at_least(values: Tensor, threshold: Tensor | float) -> Tensor:
    """The entries whose magnitude is at least a threshold; the others are zero."""
    least = torch.as_tensor(threshold, dtype=values.dtype)
    below = torch.nextafter(least, torch.zeros_like(least))
    return torch.nn.functional.hardshrink(values, float(below))


def gain_of(values: Tensor, threshold: Tensor | float) -> float:
    """Σ|x| over all values by Σ|x| over those that `at_least` keeps: ≥ 1, and 1 where it keeps nothing but zeros."""
    every = kept = 0.0
    for (part,) in blocks(values):
        every += float(part.abs().sum(dtype=torch.float64))
        kept += float(at_least(part, threshold).abs().sum(dtype=torch.float64))
    return every / kept if kept else 1.0


def trimmed(values: Tensor, count: int) -> Tensor:
    """The `count` entries of largest magnitude; the others are zero."""
    return at_least(values, threshold_keeping(values.abs(), count))


def elected(total: Tensor, tie: str | Tensor) -> Tensor:
    """The sign of each entry of a sum over experts, +1 or -1; an exact zero takes the sign of the `tie` rule.

    tie: "plus" (as mergekit's TIES), "majority": the sign that most entries of the tensor have (as the code of the
    TIES paper, and DRM's), or that sign itself, where `total` is a part of the tensor.
    """
    sign = total.sign()
    if tie == "plus":
        tie = total.new_tensor(1.0)
    elif tie == "majority":
        tie = majority(total)
    return torch.addcmul(sign, 1 - sign.abs(), tie)


def majority(total: Tensor) -> Tensor:
    """The sign that most entries have; 0 if no sign does."""
    return total.sign().sum().sign()


def agreeing(values: Tensor, sign: Tensor) -> Tensor:
    """The entries of the stack whose sign is the elected one; the others are zero. (expert, …)"""
    return (values * sign).relu_().mul_(sign)


def conflict_share(values: Tensor) -> float:
    """Of the entries that at least one expert moves, the share that two experts move in opposite directions."""
    return share_of_conflicts([conflicts(values)])


def conflicts(stack: Tensor) -> Tensor:
    """How many entries of a stack (expert, …) are moved both ways, and how many are moved at all. (2,)"""
    up, down = stack.amax(0).relu_().sign_(), stack.amin(0).neg_().relu_().sign_()
    both = up * down
    return torch.stack([both.sum(dtype=torch.float64), up.add_(down).sub_(both).sum(dtype=torch.float64)])


def share_of_conflicts(counts: list[Tensor]) -> float:
    """The share of conflicts in all blocks of a tensor, from what `conflicts` says of each."""
    both, touched = torch.stack(counts).sum(0).tolist() if counts else (0.0, 0.0)
    return both / touched if touched else 0.0
