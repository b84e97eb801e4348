"""The k-th largest of many numbers without sorting them, and counting: one or two passes at the memory's speed.

On the CPU the passes are numpy's, whose comparisons and counts are several times faster than torch's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy
import torch
from torch import Tensor

FEW = 2**15  # below this a plain selection is as fast
BLOCK = 2**16  # entries that are looked at together: few enough to stay in the cache
SAMPLED = 64  # one entry in so many is sorted, to guess between which two values the answer lies
ONE_BY_ONE = 2**19  # so many numbers are held as they are; of more, those that tie are held once and counted
SIGMAS = 5  # how far the guess may be off

# Several lists, a piece of each at a time; each call gives all of them again.
Pieces = Callable[[], Iterable[Sequence[Tensor]]]


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest entry, 1 <= k <= numel, as `torch.kthvalue` finds it. Any shape and size; values not NaN."""
    return kth_largest_of_each(lambda: [[values]], [k], values.numel())[0]


def kth_largest_of_each(walk: Pieces, counts: Sequence[int], size: int) -> list[Tensor]:
    """The k-th largest of several lists of `size` numbers each, which come in pieces. counts: the k of each list.

    (The idea of Floyd & Rivest's SELECT, 1975: a sorted sample says between which two numbers to look; what is above
    the bracket is counted, what is in it is sorted. Where the sample was wrong, a plain selection is made.)
    """
    brackets = [_bracket(sample, k / size) for sample, k in zip(_samples(walk, size), counts)] if size > FEW else []
    found = _between(walk, brackets, counts) if brackets else [None] * len(counts)
    if any(one is None for one in found):
        lists = [torch.cat([piece.flatten() for piece in pieces]) for pieces in zip(*walk())]
        found = [torch.kthvalue(values, size - k + 1).values for values, k in zip(lists, counts)]
    return found


def _samples(walk: Pieces, size: int) -> list[numpy.ndarray]:
    """Some entries of each list, sorted; none if this is not the place for numpy."""
    stride = max(1, min(SAMPLED, size // 2**12)) | 1  # odd: in step with no row length
    taken, first = [], 0
    for pieces in walk():
        if not all(map(_fast, pieces)):
            return []
        taken.append([piece.reshape(-1)[first::stride].numpy().copy() for piece in pieces])  # a view would hold them
        first = (first - pieces[0].numel()) % stride
    return [numpy.sort(numpy.concatenate(some)) for some in zip(*taken)]


def _between(walk: Pieces, brackets: Sequence[tuple[float, float]], counts: Sequence[int]) -> list[Tensor | None]:
    """The k-th largest of each list; None where it lies outside its bracket."""
    above, inside, held = [0] * len(counts), [[] for _ in counts], 0
    for pieces in walk():
        for i, (piece, (low, high)) in enumerate(zip(pieces, brackets)):
            for part, over, within in _parts(piece.reshape(-1).numpy(), low, high):
                above[i] += numpy.count_nonzero(over)
                some = part[within]
                inside[i].append(numpy.unique(some, return_counts=True) if held > ONE_BY_ONE else (some, None))
                held += len(inside[i][-1][0])
    return [_counted_down(some, k - over) for some, over, k in zip(inside, above, counts)]


def _counted_down(some: Sequence[tuple[numpy.ndarray, numpy.ndarray | None]], k: int) -> Tensor | None:
    """The k-th largest of numbers and how often each is there (None: once); None if there are not so many, or k < 1."""
    values = numpy.concatenate([part for part, _ in some])
    if all(times is None for _, times in some):
        return torch.from_numpy(numpy.sort(values)[-k:])[0] if 0 < k <= len(values) else None
    times = numpy.concatenate([numpy.ones(len(part), int) if count is None else count for part, count in some])
    down = numpy.argsort(values)[::-1]
    reached = times[down].cumsum()
    if not len(reached) or not 0 < k <= reached[-1]:
        return None
    return torch.from_numpy(values[down[numpy.searchsorted(reached, k), None]])[0]


def _parts(values: numpy.ndarray, low: float, high: float) -> Iterator[tuple[numpy.ndarray, ...]]:
    """Some entries at a time; which of them are above `high`, and which in [low, high]."""
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        over = part > high
        yield part, over, over ^ (part >= low)


def _bracket(sample: numpy.ndarray, share: float) -> tuple[float, float]:
    """Two numbers between which the largest `share` of all very likely ends. sample: sorted."""
    size = len(sample)
    middle, spread = size * (1 - share), SIGMAS * (size * share * (1 - share)) ** 0.5 + 1
    low, high = int(middle - spread), int(middle + spread) + 1
    return sample[low] if low >= 0 else -numpy.inf, sample[high] if high < size else numpy.inf


def within(pieces: Iterable[Tensor], low: float, high: float) -> tuple[int, Tensor]:
    """How many entries are above `high`, and the indices of those in [low, high], counted through all pieces.

    Few of these are expected.
    """
    above = start = count = 0
    found = torch.empty(FEW, dtype=torch.long)  # one tensor that grows: many small ones would tear memory to pieces
    for piece in pieces:
        flat = piece.reshape(-1)
        if _fast(flat):
            flat = flat.numpy()
            over, inside = numpy.count_nonzero(flat > high), numpy.flatnonzero((flat >= low) & (flat <= high))
        else:
            over, inside = int((flat > high).sum()), ((flat >= low) & (flat <= high)).nonzero().flatten()
        if count + len(inside) > len(found):
            found = torch.cat([found, found.new_empty(count + len(inside))])
        found[count : count + len(inside)] = torch.as_tensor(inside) + start
        above, start, count = above + int(over), start + len(flat), count + len(inside)
    return above, found[:count]


def number_of_nonzero(values: Tensor) -> int:
    """How many entries are not zero."""
    return int(numpy.count_nonzero(values.numpy() != 0) if _fast(values) else torch.count_nonzero(values))


def _fast(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
