"""How far a job is: what every long verb yields as it goes; and how a job is walked, to its end or within another."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

News, Made = TypeVar("News"), TypeVar("Made")


@dataclass(frozen=True)
class Step:
    """`done` of `total`, and the name of what was done last. made: what is finished so far, where that can be shown."""

    done: int
    total: int
    name: str
    made: Any = None


def result(job: Generator[Any, None, Made]) -> Made:
    """Walk a long verb to its end; what it returns."""
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def relayed(job: Generator[News, None, Made], said: Callable[[News], Any]) -> Generator[Any, None, Made]:
    """A job within a job: what it yields, each thing as `said` makes it; returns what it returns.

    Whatever ends this generator closes the job.
    """
    with closing(job):
        while True:
            try:
                news = next(job)
            except StopIteration as end:
                return end.value
            yield said(news)
