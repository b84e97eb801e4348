"""The last few things that were made, by key, bounded by their number and by what they weigh."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Made = TypeVar("Made")


class Kept(OrderedDict[str, Made]):
    """At most so many things; the one unused for longest goes first, but never one in use.

    gone: what is done with a thing that goes. weigh, heaviest: what one thing weighs, and all of them at most.
    """

    def __init__(
        self,
        most: int,
        gone: Callable[[Made], None] = lambda thing: None,
        weigh: Callable[[Made], float] = lambda thing: 0,
        heaviest: float | None = None,
    ):
        super().__init__()
        self.most, self.gone, self.weigh, self.heaviest = most, gone, weigh, heaviest
        self.weights: dict[str, float] = {}
        self.used: Counter[str] = Counter()
        self.lock = threading.RLock()

    @property
    def weight(self) -> float:
        """What all of them weigh."""
        return sum(self.weights[key] for key in list(self))

    def get_or_make(self, key: str, make: Callable[[], Made]) -> Made:
        with self.lock:
            if key not in self:
                self.keep(key, make())
            self.move_to_end(key)
            return self[key]

    @contextmanager
    def using(self, key: str, make: Callable[[], Made]) -> Iterator[Made]:
        """The thing of that key; it stays as long as it is in use."""
        with self.lock:
            self.used[key] += 1
            try:
                thing = self.get_or_make(key, make)
            except BaseException:
                self.used[key] -= 1
                raise
        try:
            yield thing
        finally:
            with self.lock:
                self.used[key] -= 1
                self._shrink()

    def keep(self, key: str, thing: Made) -> None:
        with self.lock:
            self[key], self.weights[key] = thing, self.weigh(thing)
            self.move_to_end(key)
            self._shrink(key)

    def drop(self, key: str) -> None:
        """Let one go, whatever it is."""
        with self.lock:
            if key in self:
                self.weights.pop(key, None)
                self.gone(self.pop(key))

    def _shrink(self, newest: str | None = None) -> None:
        """Let go what is unused for longest until the bounds are kept, but for what was just made."""
        self.used = +self.used
        for key in [key for key in self if key not in self.used and key != newest]:
            if len(self) <= self.most and (self.heaviest is None or self.weight <= self.heaviest):
                break
            self.drop(key)
