"""What verbs share: the words that name a recipe's work, what there is to remark, how a verb is run and ends."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from mergelab.errors import MergeError
from mergelab.merging.devices import ProcessLost, is_alone, leave, speaks
from mergelab.report import Report

_WORKERS = "tensors at a time (default: one per core, or as few as the free memory has room for)"


def add_work(verb: argparse.ArgumentParser) -> None:
    """Add a recipe, and on what it is worked."""
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    add_device(verb)
    verb.add_argument("--workers", type=int, metavar="N", help=_WORKERS)


def add_device(verb: argparse.ArgumentParser) -> None:
    """Add the choice of a device."""
    verb.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")


def print_remarks(report: Report) -> None:
    """Print the notes of a report, and what was not merged."""
    for note in report.notes:
        print(f"note: {note}")
    for name, why in report.skipped.items():
        print(f"not merged: {name}: {why}")


def exit_status(run: Callable[[argparse.Namespace], int | None], asked: argparse.Namespace) -> int:
    """Run a verb; the exit status: the verb's own, or that of an error, after a line that says why."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended cleans up as Ctrl-C does
    try:
        status = run(asked)
        sys.stdout.flush()
    except ProcessLost as error:
        _say_why(str(error))
        os._exit(1)  # at once: an orderly end would wait for the lost one, or abort
    except MergeError as error:
        _say_why(str(error))
        return 1
    except KeyboardInterrupt:
        _say_why("stopped; nothing was written." if is_alone() else "stopped; run the same command again to go on.")
        return 130
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        leave()
    return status or 0


def _say_why(sentence: str) -> None:
    """One line on stderr, from one of the processes if there are several."""
    if speaks():
        print(f"mergelab: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
