"""Heavy work, one piece at a time, first come, first served: who works, who waits, and for how long one may work."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from mergelab.errors import MergeError
from mergelab.limits import Limits
from mergelab.step import relayed

GLANCE = 0.5  # seconds between two looks at how many are before: Stop takes no longer


@dataclass(frozen=True)
class Waiting:
    """News of a job whose turn has not come."""

    before: int
    own: bool = False  # those before are of whoever waits

    @property
    def sentence(self) -> str:
        """As the status line says it."""
        if self.own:
            return "Your other job is still running: this one begins when it is done. Stop leaves the line."
        return f"{self.before} {'other' if self.before == 1 else 'others'} before you. Stop leaves the line."


class Line:
    """The line of this process. most: how many may wait. minutes: how long one job may take (None: as it likes)."""

    def __init__(self, most: int = 24, minutes: float | None = None):
        self.most, self.minutes = most, minutes
        self._places: list[_Place] = []  # the first one works
        self._moved = threading.Condition()

    @property
    def running(self) -> int:
        """How many jobs are at work."""
        return min(1, len(self._places))

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return max(0, len(self._places) - 1)

    def in_turn(self, work: Callable[[], Iterator[Any]], who: str = "") -> Generator[Any, None, Any]:
        """Waiting, then what the work yields; returns what it returns. MergeError if the line is full, or the time up.

        Closing it leaves the line, or closes the work. who: whose work it is, if that is known.
        """
        with self._place(who) as place:
            while before := self._before(place):
                yield Waiting(len(before), bool(who) and {other.who for other in before} == {who})
                with self._moved:
                    self._moved.wait(GLANCE)
            return (yield from within(work(), self.minutes))

    @contextmanager
    def _place(self, who: str) -> Iterator["_Place"]:
        place = _Place(who)
        with self._moved:
            if len(self._places) > self.most:
                raise MergeError(f"{self.waiting} jobs are waiting here already. Come back in a few minutes.")
            self._places.append(place)
        try:
            yield place
        finally:
            with self._moved:
                self._places.remove(place)
                self._moved.notify_all()

    def _before(self, place: "_Place") -> list["_Place"]:
        with self._moved:
            return self._places[: self._places.index(place)]


@dataclass(frozen=True, eq=False)
class _Place:
    """A place in the line, and whose it is ('' where that is not known)."""

    who: str


def within(work: Iterator[Any], minutes: float | None) -> Generator[Any, None, Any]:
    """What the work yields, and what it returns; it is closed, with a MergeError, when its time is up."""
    end = time.monotonic() + 60 * (minutes or float("inf"))

    def in_time(news: Any) -> Any:
        if time.monotonic() > end:
            raise MergeError(
                f"This took more than {minutes:g} minutes, which is what one job may take here, and was stopped. "
                "Take smaller models, fewer experts, or run mergelab yourself."
            )
        return news

    return (yield from relayed(work, in_time))


@cache
def shared_line() -> Line:
    """The line of this process, as the environment bounds it."""
    limits = Limits.read()
    return Line(limits.max_waiting, limits.max_minutes)
