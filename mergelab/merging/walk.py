"""The order of a long job: which tensor first, on how many threads. Knows no mathematics and no file.

Each worker holds one tensor at a time, so that memory is bounded by the number of workers, and each computes on one
core: factorisations of this size lose more by waiting for each other's threads than they gain. What is written does
not depend on the number of workers.
"""

import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from math import prod
from typing import TypeVar

import torch

from mergelab.errors import MergeError
from mergelab.merging.devices import workers_for
from mergelab.merging.memory import available, reused
from mergelab.planning.parts import held
from mergelab.planning.plan import Plan

Made = TypeVar("Made")

ROOM = 0.8  # the share of the free memory that tensors may take
_PER_ENTRY = 64  # what reading, merging and writing an entry costs, in multiplications of a factorisation


def costs(plan: Plan) -> dict[str, float]:
    """What each tensor costs, in multiplications, about: a factorisation per expert, or a walk over its entries."""
    return {name: len(plan.experts) * _cost(plan, name) for name in plan.names}


def _cost(plan: Plan, name: str) -> float:
    shape = plan.base.entries[name].shape
    if not plan.decomposes(name):
        return _PER_ENTRY * prod(shape)
    return prod(shape) * min(shape) + 4 * min(shape) ** 3


def workers_fitting(
    plan: Plan, device: torch.device | str, asked: int | None, whole: Callable[[str], bool] = lambda name: False
) -> tuple[int, tuple[str, ...]]:
    """How many threads work at once, as in `workers_for`, and a note on why not more.

    Unless a number is asked, there are as few as the free memory has room for: each holds a tensor of every expert.
    whole: whether a tensor is taken as one, where a merge takes it in parts.
    """
    workers, free = workers_for(device, asked), available()
    if asked is not None or torch.device(device).type != "cpu" or not free:
        return workers, ()
    most = max((held(plan, name, whole(name)) for name in plan.names), default=1)
    fit = max(1, min(workers, int(ROOM * free) // most))
    why = f"{fit} of {workers} cores merge at a time: {free / 1e9:.1f} GB of free memory have no room for more tensors."
    return fit, (why,) * (fit < workers)


def in_order(costs: Mapping[str, float]) -> list[str]:
    """The names in the order in which their work is begun: the dearest first, so that none of those is the last."""
    return sorted(costs, key=lambda name: -costs[name])


def walked(costs: Mapping[str, float], work: Callable[[str], Made], workers: int) -> Generator[Made, None, None]:
    """work(name) of every name, as each is done; they are begun as in `in_order`.

    Closing the generator, or an error in one, drops all that is not begun, and waits for what is.
    """
    pool = _crew(max(1, min(workers, len(costs))))
    with reused():
        try:
            jobs = [pool.submit(work, name) for name in in_order(costs)]
            for job in as_completed(jobs):
                jobs.remove(job)  # so that what it made is not held here
                yield job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _crew(workers: int) -> ThreadPoolExecutor:
    """Threads for which torch uses one core each, while it goes on as before for every other thread."""
    before, ready = torch.get_num_threads(), threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread takes over the general number at its first question, and never again
        torch.set_num_threads(1)
        with suppress(threading.BrokenBarrierError):
            ready.wait()

    pool = ThreadPoolExecutor(workers, "mergelab", begin)
    try:
        for _ in range(workers):
            pool.submit(int)  # a thread is begun only when there is something to do
        ready.wait()
    except BaseException as error:  # ended while they begin: nobody is to wait for those that never will
        ready.abort()
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, RuntimeError):
            raise MergeError(f"{workers} threads cannot be begun here ({error}). Use fewer '--workers'.") from None
        raise
    finally:
        torch.set_num_threads(before)  # the number is a thread's own; new threads take that which was set last
    return pool
