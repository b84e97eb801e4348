"""The sha256 of files, found once in a process, and beside what else is done. Needs nothing but Python.

A file is the same as long as its stamp (stamp.py) is. What is to be found beside goes file by file on one thread, for
which nobody waits when the process ends; large files each in a process of its own, which waits for no thread's turn.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from mergelab.files import sha256
from mergelab.files.stamp import Stamp, stamp_of, unreadable

LARGE = 1 << 26  # bytes: hashing as much takes longer than starting a process for it
MOST = 4096  # files that are remembered
_SHA256 = re.compile(r"[0-9a-f]{64}")
_jobs: dict[Stamp, Future] = {}  # a file -> its digest, found or to be found


def sha256_of(path: Path) -> str:
    """The sha256 of a file; in the cache of the Hub a large file's name is its hash. MergeError if it is gone."""
    while not (known := _in_its_name(path)):
        try:
            return _job(path, _find).result()
        except CancelledError:  # by somebody else, who had wanted it too
            continue
    return known


def begin(paths: Iterable[Path]) -> list[Future]:
    """Have the digests of files found beside what else is done, in their order; `sha256_of` waits for them."""
    return [_job(path, lambda *work: _queue().put(work)) for path in paths if not _in_its_name(path)]


@contextmanager
def hashed(paths: Iterable[Path]) -> Iterator[Callable[[], dict[Path, str]]]:
    """The digests of files, found beside what is done in the block; the call that is given waits for them."""
    paths = list(paths)
    jobs = begin(paths)
    try:
        yield lambda: {path: sha256_of(path) for path in paths}
    finally:
        for job in jobs:
            job.cancel()  # those that have not begun


def _in_its_name(path: Path) -> str:
    """The name that the cache of the Hub has given a file, if it is a hash; '' elsewhere, whatever a link leads to."""
    file = path.resolve()
    cached = path.is_symlink() and file.parent.name == "blobs" and (file.parent.parent / "snapshots").is_dir()
    return file.name if cached and _SHA256.fullmatch(file.name) else ""


def _job(path: Path, start: Callable[[Path, Future], None]) -> Future:
    stamp = stamp_of(path)
    job = _jobs.get(stamp)
    if job is None or job.cancelled() or (job.done() and job.exception()):
        job = _jobs[stamp] = Future()
        while len(_jobs) > MOST:
            _jobs.pop(next(iter(_jobs)), None)
        start(path, job)
    return job


def _find(path: Path, job: Future) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        job.set_result(_digest(path))
    except OSError as error:
        job.set_exception(unreadable(path, error))
    except BaseException as error:  # for whoever asks
        job.set_exception(error)


def _digest(path: Path) -> str:
    if path.stat().st_size >= LARGE and sys.executable:
        command = [sys.executable, "-I", "-S", sha256.__file__, str(path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return sha256.digest_of(str(path))


@cache
def _queue() -> SimpleQueue:
    queue: SimpleQueue = SimpleQueue()

    def work() -> None:
        while True:
            _find(*queue.get())

    Thread(target=work, name="mergelab-hash", daemon=True).start()
    return queue
