"""The k-th largest of many numbers without sorting them, and counting: one or two passes at the memory's speed.

On the CPU the passes are numpy's, whose comparisons and counts are several times faster than torch's.
"""

from collections.abc import Iterator

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
    if _fast(flat) and len(flat) > FEW:
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
    for part, over, within in _parts(values, low, high):
        above += numpy.count_nonzero(over)
        inside.append(part[within])
    bracketed = numpy.sort(numpy.concatenate(inside))
    return float(bracketed[above - k]) if above < k <= above + len(bracketed) else None


def _parts(values: numpy.ndarray, low: float, high: float) -> Iterator[tuple[numpy.ndarray, ...]]:
    """Some entries at a time; which of them are above `high`, and which in [low, high]."""
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        over = part > high
        yield part, over, over ^ (part >= low)


def _bracket(values: numpy.ndarray, share: float) -> tuple[float, float]:
    """Two numbers between which the largest `share` of all very likely ends."""
    sample = numpy.sort(values[:: max(1, min(SAMPLED, len(values) // 2**12)) | 1])  # odd: in step with no row length
    size = len(sample)
    middle, spread = size * (1 - share), SIGMAS * (size * share * (1 - share)) ** 0.5 + 1
    low, high = int(middle - spread), int(middle + spread) + 1
    return sample[low] if low >= 0 else -numpy.inf, sample[high] if high < size else numpy.inf


def within(values: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """How many entries are above `high`, and the flat indices of those in [low, high]. Few of these are expected."""
    flat = values.flatten()
    if not _fast(flat):
        return int((flat > high).sum()), ((flat >= low) & (flat <= high)).nonzero().flatten()
    above, found = 0, []
    for i, (_, over, inside) in enumerate(_parts(flat.numpy(), low, high)):
        above += numpy.count_nonzero(over)
        found.append(numpy.flatnonzero(inside) + i * BLOCK)
    return int(above), torch.from_numpy(numpy.concatenate(found)) if found else flat.new_zeros(0, dtype=torch.long)


def number_of_nonzero(values: Tensor) -> int:
    """How many entries are not zero."""
    return int(numpy.count_nonzero(values.numpy() != 0) if _fast(values) else torch.count_nonzero(values))


def _fast(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
