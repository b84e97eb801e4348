"""What a job runs on: the device, the cores, and the processes that `torchrun` or `accelerate launch` started.

This room knows no tensor and no file. Without a launcher there is one process, and nothing here costs anything.
"""

import atexit
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch

from mergelab.errors import MergeError

Shared = TypeVar("Shared")
MOST_WORKERS = 1024  # threads


class ProcessLost(MergeError):
    """One of several processes has ended without a word."""


@dataclass(frozen=True)
class Team:
    """The processes that share a job: this one's number, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that speaks and writes the papers."""
        return self.rank == 0

    def share(self, costs: Mapping[Shared, float]) -> list[Shared]:
        """The names that this process does: dearest first, each to the process with the least to do so far."""
        loads, mine = [0.0] * self.count, []
        for name in sorted(costs, key=lambda name: -costs[name]):
            least = loads.index(min(loads))
            loads[least] += costs[name]
            mine += [name] if least == self.rank else []
        return mine

    def gathered(self, thing: Any) -> list[Any]:
        """What each process gives here, in the order of their numbers. All must call.

        What one failed with is raised in all of them; ProcessLost if one is not there any more.
        """
        if self.count == 1:
            return [thing]
        things = self._exchanged(thing)
        for error in things:
            if isinstance(error, Exception):
                raise error
        return things

    def each(self, make: Callable[[], Any]) -> list[Any]:
        """What each process makes here, in the order of their numbers. All must call; errors as in `gathered`."""
        try:
            thing = make()
        except Exception as error:
            self.fail(error)
        return self.gathered(thing)

    def fail(self, error: Exception) -> NoReturn:
        """Tell the other processes of an error, at the next thing that is gathered, and raise it."""
        if not isinstance(error, ProcessLost):
            self.gathered(error)
        raise error

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in all of them."""
        try:
            thing = make() if self.is_first else None
        except Exception as error:
            self.fail(error)
        return self.gathered(thing)[0]

    def goes_on_after(self, error: BaseException) -> bool:
        """Whether what is done should stay for a next run: where one of several processes was lost or ended."""
        return self.count > 1 and (isinstance(error, ProcessLost) or not isinstance(error, Exception))

    def _exchanged(self, thing: Any) -> list[Any]:
        from accelerate.utils import gather_object

        try:
            return gather_object([thing])
        except RuntimeError as error:
            raise ProcessLost(
                f"One of the {self.count} processes of this merge has ended. What is finished is kept: run the same "
                f"command again to go on from there. ({str(error).splitlines()[0][:120]})"
            ) from None


def is_alone() -> bool:
    """Whether no launcher has started further processes for this job."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return is_alone() or os.environ.get("RANK", "0") == "0"


def team() -> Team:
    """The processes that a launcher started, in touch with one another; this one alone without a launcher."""
    if is_alone():
        return Team()
    state = _state()
    return Team(state.process_index, state.num_processes)


def leave() -> None:
    """Say goodbye to the other processes, if there are any."""
    if not is_alone() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _state() -> Any:
    from accelerate import PartialState  # half a second to import

    atexit.register(leave)  # or else gloo's threads may end this process by a fault of their own as it exits
    # Without a GPU, accelerate must be told to use gloo; one process may have to wait long for another.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def device_named(name: str = "auto") -> torch.device:
    """The accelerator of this process for 'auto', or the device that is named. MergeError if it is not there."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True) if is_alone() else _state().device
        return found if found and found.type != "mps" else torch.device("cpu")  # mps has no float64
    try:
        torch.zeros(1, dtype=torch.float64, device=name).tolist()  # 'meta' would hold no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, TypeError):
        raise MergeError(f"Device '{name}' cannot be used on this machine. Use '--device auto', or 'cpu'.") from None


def workers_for(device: torch.device | str, asked: int | None = None) -> int:
    """How many threads work at once: what was asked, else one per core that this process may use; two for a GPU."""
    if asked is not None:
        if not 1 <= asked <= MOST_WORKERS:
            raise MergeError(f"There can be 1 to {MOST_WORKERS} workers, not {asked}. One per core is best.")
        return asked
    if torch.device(device).type != "cpu":
        return 2  # one reads while the other computes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
