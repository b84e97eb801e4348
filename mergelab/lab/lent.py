"""Analysis, merge and answers as jobs that a lent GPU can do: on a ZeroGPU Space each runs in a forked worker.

What goes in and what comes out is pickled there, and what a worker changes in memory is lost: so recipes, paths and
reports travel, and nothing else. Elsewhere these are plain generators.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from mergelab.merging.devices import device_named
from mergelab.merging.merge import inspect, merge
from mergelab.model import answer, running
from mergelab.planning.estimate import estimate
from mergelab.planning.plan import Plan, plan
from mergelab.recipes.recipe import Recipe
from mergelab.report import LayerReport, Report
from mergelab.step import Step, relayed

LEAST, MOST = 30, 300  # seconds that are asked for


def _lender() -> Callable[..., Any] | None:
    """`spaces.GPU` where a Space lends its GPU by the call; None elsewhere."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "true"):
        return None
    try:
        from spaces import GPU
    except ImportError:
        return None
    return GPU


def lent(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A generator function, on a lent GPU where there is one. Its last argument is the seconds that it may take."""
    lender = _lender()
    return lender(duration=lambda *given: given[-1])(function) if lender else function


IS_LENT = _lender() is not None


@lent
def _analysis(work: Plan | Recipe, device: str, seconds: int) -> Iterator[Step | Report]:
    work = _opened(work)
    yield (yield from counted(inspect(work, device_named(device), diagnose=True), len(work.names)))


@lent
def _merge(work: Plan | Recipe, out: str, device: str, seconds: int) -> Iterator[Step | Report]:
    work = _opened(work)
    yield (yield from counted(merge(work, out, device_named(device)), len(work.names)))


@lent
def _answer(folder: str, prompt: str, how: dict[str, Any], seconds: int) -> Iterator[str]:
    yield from answer(running(Path(folder)), prompt, **how)


def analysed(work: Plan, device: str) -> Generator[Step, None, Report]:
    """Measure what a plan would do. Returns its report."""
    return (yield from _reported(_analysis(_portable(work), device, seconds_for(work))))


def merged(work: Plan, out: Path, device: str) -> Generator[Step, None, Report]:
    """Merge into a folder. Returns its report."""
    return (yield from _reported(_merge(_portable(work), str(out), device, seconds_for(work))))


def answered(folder: Path, prompt: str, **how: Any) -> Iterator[str]:
    """The answer of the model in a folder, on a lent GPU; loaded for itself alone."""
    return _answer(str(folder), prompt, how, min(MOST, LEAST + how.get("tokens", 48) // 8))


def seconds_for(work: Plan) -> int:
    """What to ask for: the estimate for a laptop, within bounds; 0 where nothing is lent."""
    return int(min(MOST, max(LEAST, estimate(work).seconds))) if IS_LENT else 0


def counted(job: Generator[LayerReport, None, Report], total: int) -> Generator[Step, None, Report]:
    """The job with its LayerReports as Steps."""
    done = count(1)
    return (yield from relayed(job, lambda layer: Step(next(done), total, layer.name)))


def _reported(job: Generator[Step | Report, None, None]) -> Generator[Step, None, Report]:
    """The Steps of a job; returns the Report that comes last."""
    with closing(job):
        for news in job:
            if isinstance(news, Report):
                return news
            yield news
    raise RuntimeError("the job ended without a report")


def _portable(work: Plan) -> Plan | Recipe:
    """What a worker takes: a plan holds open files' places and functions, so it makes its own."""
    return work.recipe if IS_LENT else work


def _opened(work: Plan | Recipe) -> Plan:
    return work if isinstance(work, Plan) else plan(work)
