"""A lock that a process holds on a file for as long as it lives."""

from pathlib import Path
from typing import IO


def locked(path: Path, sure: bool = False) -> IO[bytes] | None:
    """The open file, which the system unlocks when it is closed or this process ends; None if another one holds it.

    On a system without locks the file is open all the same, or, to be `sure` that nobody holds it, None. OSError if it
    cannot be opened.
    """
    file = open(path, "ab")  # noqa: SIM115  closed by the caller
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        held = True
    except (ImportError, OSError):  # Windows; a file system without locks
        held = sure
    if not held:
        return file
    file.close()
    return None
