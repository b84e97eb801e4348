"""Entries of several tensors that agree or disagree: trim the small ones, elect a sign, average those that agree.

All treat each entry on its own. Written in float arithmetic: masks of booleans are several times slower.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mergelab.maths.selection import Pieces, kth_largest, kth_largest_of_each

BLOCK = 2**16  # entries of each tensor that are worked on together: few enough to stay in the cache
EXACT = 2**24  # up to here float32 counts without error
NO_MASS = 1e-8  # weights that add up to less, in magnitude, are not divided by


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


def thresholds_keeping(walk: Pieces, counts: Sequence[int], size: int) -> list[Tensor]:
    """The magnitude of the count-th largest entry of several tensors of `size` entries that come in pieces.

    Where a count is 0 it is infinite, where it is `size` it is 0; nothing is read if all of them are.
    """
    between = [i for i, count in enumerate(counts) if 0 < count < size]
    found = [torch.tensor(0.0 if count else float("inf")) for count in counts]
    if between:
        asked = (lambda: ([pieces[i] for i in between] for pieces in walk())), [counts[i] for i in between], size
        some = kth_largest_of_each(*asked, magnitudes=True)
        for i, least in zip(between, some):
            found[i] = least
    return found


def at_least(values: Tensor, threshold: Tensor | float) -> Tensor:
    """The entries whose magnitude is at least a threshold; the others are zero."""
    return torch.hardshrink(values, next_below(threshold, values.dtype))


def next_below(threshold: Tensor | float, dtype: torch.dtype) -> float:
    """The largest magnitude of a dtype that is less than a threshold; 0 below 0."""
    least = torch.as_tensor(threshold, dtype=dtype)
    return float(torch.nextafter(least, torch.zeros_like(least)))


def larger(tensors: Sequence[Tensor], bounds: Sequence[float]) -> Tensor:
    """The entries of each tensor whose magnitude is larger than its bound; the others are zero. (tensor, …)"""
    stack = tensors[0].new_empty(len(tensors), *tensors[0].shape)
    for row, tensor, bound in zip(stack, tensors, bounds):
        torch.hardshrink(tensor, bound, out=row)
    return stack


def gains_of(walk: Pieces, thresholds: Sequence[Tensor]) -> list[float]:
    """Σ|x| of several tensors that come in pieces, by Σ|x| of what `at_least` keeps: ≥ 1; 1 where that is nothing."""
    sums = torch.zeros(2, len(thresholds), dtype=torch.float64)
    for pieces in walk():
        for part in blocks(*pieces):
            sums[0] += torch.stack([x.abs().sum(dtype=torch.float64).cpu() for x in part])
            kept = map(at_least, part, thresholds)
            sums[1] += torch.stack([x.abs().sum(dtype=torch.float64).cpu() for x in kept])
    return [float(every / kept) if kept else 1.0 for every, kept in sums.T]


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
        tie = majority([total]).to(total)
    return torch.addcmul(sign, 1 - sign.abs(), tie)


def majority(parts: Iterable[Tensor]) -> Tensor:
    """The sign that most entries of a tensor have, which comes in parts; 0 if no sign does."""
    return sum(part.sign().sum(dtype=torch.float64) for part in parts).sign()


def agreeing(values: Tensor, sign: Tensor) -> Tensor:
    """The entries of the stack whose sign is the elected one; the others are zero. (expert, …)"""
    return sizes_agreeing(values, sign).mul_(sign)


def sizes_agreeing(values: Tensor, sign: Tensor) -> Tensor:
    """The magnitudes of the entries whose sign is the elected one; zero for the others. (expert, …)"""
    return (values * sign).relu_()


def conflict_share(values: Tensor) -> float:
    """Of the entries that at least one expert moves, the share that two experts move in opposite directions."""
    both, touched = conflicts(values).tolist()
    return both / touched if touched else 0.0


def conflicts(stack: Tensor) -> Tensor:
    """How many entries of a stack (expert, …) are moved both ways, and how many are moved at all. (2,)"""
    up, down = stack.amax(0).relu_().sign_(), stack.amin(0).neg_().relu_().sign_()
    both = up * down
    precise = None if both.numel() <= EXACT else torch.float64
    return torch.stack([both.sum(dtype=precise), up.add_(down).sub_(both).sum(dtype=precise)]).double()


def divided(total: Tensor, mass: Tensor) -> Tensor:
    """total / mass, and the total itself where the mass is as good as zero."""
    mass = at_least(mass, NO_MASS)
    return total / mass.add(1 - mass.sign().abs_())
