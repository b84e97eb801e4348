"""The k-th largest of many numbers without sorting them, and counting: one or two passes at the memory's speed.

On the CPU the passes are numpy's, whose comparisons and counts are several times faster than torch's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy
import torch
from torch import Tensor

FEW = 2**15  # below this a plain selection is as fast
BLOCK = 2**16  # entries that are looked at together: few enough to stay in the cache
SAMPLED = 32  # one entry in so many is looked at first, to guess between which two values the answer lies
FEWEST, MOST = 2**12, 2**17  # so many of these, about: enough for a guess, and soon put in order
STRIDES = (1, 7, 17, 31, 61, 127, 251, 509, 1021, 2039, 4093)  # primes: in step with hardly any row length
ONE_BY_ONE = 2**18  # so many numbers are held as they are; of more, those that tie are held once and counted
SIGMAS = 4  # how far the guess may be off: one in sixteen thousand is, and is made good by a plain selection

# Several lists, a piece of each at a time; each call gives all of them again.
Pieces = Callable[[], Iterable[Sequence[Tensor]]]


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest entry, 1 <= k <= numel, as `torch.kthvalue` finds it. Any shape and size; values not NaN."""
    return kth_largest_of_each(lambda: [[values]], [k], values.numel())[0]


def kth_largest_of_each(walk: Pieces, counts: Sequence[int], size: int, magnitudes: bool = False) -> list[Tensor]:
    """The k-th largest of several lists of `size` numbers each, which come in pieces. counts: the k of each list.

    magnitudes: of the numbers without their signs. (The idea of Floyd & Rivest's SELECT, 1975: a sample says between
    which two numbers to look; what is above the bracket is counted, what is in it is selected from. Where the sample
    was wrong, a plain selection is made.)
    """
    samples = _samples(walk, size) if size > FEW else []
    brackets = [_bracket(numpy.abs(some) if magnitudes else some, k / size) for some, k in zip(samples, counts)]
    found = _between(walk, brackets, counts, magnitudes) if brackets else [None] * len(counts)
    if missed := [i for i, one in enumerate(found) if one is None]:
        lists = zip(*[[pieces[i].flatten() for i in missed] for pieces in walk()])  # one walk: each reads anew
        for i, values in zip(missed, map(torch.cat, lists)):
            found[i] = torch.kthvalue(values.abs_() if magnitudes else values, size - counts[i] + 1).values
    return found


def _samples(walk: Pieces, size: int) -> list[numpy.ndarray]:
    """Some entries of each list; none if this is not the place for numpy."""
    stride = stride_of(size)
    taken: list[_Row] = []
    first = 0
    for pieces in walk():
        if not all(map(_fast, pieces)):
            return []
        taken = taken or [_Row(-(-size // stride)) for _ in pieces]
        for row, piece in zip(taken, pieces):
            row.add(piece.reshape(-1)[first::stride].numpy())
        first = (first - pieces[0].numel()) % stride
    return [row.numbers for row in taken]


def stride_of(size: int) -> int:
    """One entry in so many of `size` is looked at first."""
    wanted = max(min(SAMPLED, size // FEWEST), size // MOST)
    return max(stride for stride in STRIDES if stride <= max(1, wanted))


def _between(
    walk: Pieces, brackets: Sequence[tuple[float, float]], counts: Sequence[int], magnitudes: bool
) -> list[Tensor | None]:
    """The k-th largest of each list; None where it lies outside its bracket."""
    above, inside = [0] * len(counts), [_Counted() for _ in counts]
    for pieces in walk():
        for i, (piece, (low, high)) in enumerate(zip(pieces, brackets)):
            for part in _parts(piece.reshape(-1).numpy(), magnitudes):
                count, places = _in_bracket(part, low, high)
                above[i] += count
                inside[i].add(part.take(places))
    return [some.largest(k - over) for some, over, k in zip(inside, above, counts)]


class _Row:
    """Numbers put one after another into one array: many small ones, each kept, would tear memory to pieces."""

    def __init__(self, room: int):
        self.room, self.count, self._array = room, 0, None

    def add(self, some: numpy.ndarray) -> None:
        """Put some numbers behind the others."""
        if self._array is None:
            self._array = numpy.empty(self.room, some.dtype)
        if self.count + len(some) > len(self._array):
            self._array = numpy.concatenate([self.numbers, numpy.empty(self.count + len(some), some.dtype)])
        self._array[self.count : self.count + len(some)] = some
        self.count += len(some)

    @property
    def numbers(self) -> numpy.ndarray:
        """All of them."""
        return numpy.empty(0) if self._array is None else self._array[: self.count]


class _Counted:
    """Numbers to find the k-th largest of. Of more than ONE_BY_ONE, those that tie are held once, and counted."""

    def __init__(self):
        self.row, self.values, self.times = _Row(FEW), numpy.empty(0), numpy.empty(0, int)

    def add(self, some: numpy.ndarray) -> None:
        """Take some numbers in."""
        self.row.add(some)
        if self.row.count > ONE_BY_ONE:
            self._put_together()

    def _put_together(self) -> None:
        fresh, times = numpy.unique(self.row.numbers, return_counts=True)
        values = numpy.concatenate([self.values.astype(fresh.dtype), fresh])
        self.values, place = numpy.unique(values, return_inverse=True)
        self.times = numpy.bincount(place, numpy.concatenate([self.times, times])).astype(int)
        self.row.count = 0

    def largest(self, k: int) -> Tensor | None:
        """The k-th largest; None if there are not so many, or k < 1."""
        if not len(self.values):
            numbers = self.row.numbers
            place = len(numbers) - k
            return _alone(numpy.partition(numbers, place), place) if 0 <= place < len(numbers) else None
        self._put_together()
        reached = self.times[::-1].cumsum()
        if not 0 < k <= reached[-1]:
            return None
        return _alone(self.values[::-1], int(numpy.searchsorted(reached, k)))


def _alone(numbers: numpy.ndarray, place: int) -> Tensor:
    """One of many numbers, which holds no memory but its own."""
    return torch.from_numpy(numbers[place : place + 1].copy())[0]


def _parts(values: numpy.ndarray, magnitudes: bool) -> Iterator[numpy.ndarray]:
    """Some entries at a time, or their magnitudes."""
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        yield numpy.abs(part) if magnitudes else part


def _in_bracket(part: numpy.ndarray, low: float, high: float) -> tuple[int, numpy.ndarray]:
    """How many entries are above `high`, and the places of those in [low, high]."""
    over = part > high
    return numpy.count_nonzero(over), numpy.flatnonzero(over ^ (part >= low))


def _bracket(sample: numpy.ndarray, share: float) -> tuple[float, float]:
    """Two numbers between which the largest `share` of all very likely ends. The sample is put in another order."""
    size = len(sample)
    middle, spread = size * (1 - share), SIGMAS * (size * share * (1 - share)) ** 0.5 + 1
    low, high = int(middle - spread), int(middle + spread) + 1
    sample.partition([place for place in (low, high) if 0 <= place < size])
    return sample[low] if low >= 0 else -numpy.inf, sample[high] if high < size else numpy.inf


def within(pieces: Iterable[Tensor], low: float, high: float) -> tuple[int, Tensor]:
    """How many entries are above `high`, and the indices of those in [low, high], counted through all pieces.

    Few of these are expected.
    """
    above, start, found = 0, 0, _Row(FEW)
    device = torch.device("cpu")
    for piece in pieces:
        flat, device = piece.reshape(-1), piece.device
        if _fast(flat):
            flat = flat.numpy()
            over, inside = _in_bracket(flat, low, high)
        else:
            over, inside = int((flat > high).sum()), ((flat >= low) & (flat <= high)).nonzero().flatten().cpu().numpy()
        found.add(inside + start)
        above, start = above + int(over), start + len(flat)
    return above, torch.from_numpy(found.numbers.astype(numpy.int64)).to(device)


def number_of_nonzero(values: Tensor) -> int:
    """How many entries are not zero."""
    return int(numpy.count_nonzero(values.numpy() != 0) if _fast(values) else torch.count_nonzero(values))


def _fast(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
