"""A job walked to its end, with a line on a terminal that says what it is at. Says nothing where nobody looks."""

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import count
from typing import Any

from mergelab.merging.devices import speaks
from mergelab.merging.merge import Progress
from mergelab.report import Report


def walked(job: Generator[Any, None, Any], said: Callable[[Any], str] = str) -> Any:
    """Walk a job to its end; what it returns. said: the line for a thing that it yields."""
    with closing(job):
        try:
            while True:
                _show(said(next(job)))
        except StopIteration as end:
            return end.value
        finally:
            _show("")


def followed(job: Progress, total: int) -> Report:
    """Walk a merge of so many tensors to its end; its report."""
    done = count(1)
    return walked(job, lambda layer: f"{next(done)}/{total} {layer.name}")


def _show(text: str) -> None:
    if sys.stderr.isatty() and speaks():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
