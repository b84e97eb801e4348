"""The k-th largest of many numbers without sorting them, and counting: one or two passes at the memory's speed.

On the CPU the passes are numpy's, whose comparisons and counts are several times faster than torch's.
"""

import numpy
import torch
from torch import Tensor

FEW = 2**15  # below this a plain selection is as fast
BLOCK = 2**16  # entries that are looked at together: few enough to stay in the cache
SAMPLED = 64  # one entry in so many is sorted, to guess between which two values the answer lies
SIGMAS = 5  # how far the guess may be off


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest entry, 1 <= k <= numel, as `torch.kthvalue` finds it. Any shape and size; values not NaN."""
    flat = values.flatten()
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64) and len(flat) > FEW:
        found = _between_two_guesses(flat.numpy(), k)
        if found is not None:
            return flat.new_tensor(found)
    return torch.kthvalue(flat, len(flat) - k + 1).values


def _between_two_guesses(values: numpy.ndarray, k: int) -> float | None:
    """The k-th largest, by way of a sorted sample that says where to look; None if it lies elsewhere.

    (The idea of Floyd & Rivest's SELECT, 1975: what is above the bracket is counted, what is in it is sorted.)
    """
    low, high = _bracket(values, k / len(values))
    above, inside = 0, []
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        over = part > high
        above += numpy.count_nonzero(over)
        inside.append(part[over ^ (part >= low)])
    bracketed = numpy.concatenate(inside)
    return float(numpy.sort(bracketed)[above - k]) if above < k <= above + len(bracketed) else None


def _bracket(values: numpy.ndarray, share: float) -> tuple[float, float]:
    """Two numbers between which the largest `share` of all very likely ends."""
    sample = numpy.sort(values[:: max(1, min(SAMPLED, len(values) // 2**12)) | 1])  # odd: in step with no row length
    size = len(sample)
    middle, spread = size * (1 - share), SIGMAS * (size * share * (1 - share)) ** 0.5 + 1
    low, high = int(middle - spread), int(middle + spread) + 1
    return sample[low] if low >= 0 else -numpy.inf, sample[high] if high < size else numpy.inf


def number_of_nonzero(values: Tensor) -> int:
    """How many entries are not zero."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        return int(numpy.count_nonzero(values.numpy() != 0))
    return int(torch.count_nonzero(values))
