"""The memory of this process: how much it has held, and that what one tensor frees stays for the next.

This room asks the system, and knows no tensor. Where the system has no such means, nothing here does anything.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of glibc's mallopt
_LARGE = 1 << 30  # bytes
CONTAINER = "/sys/fs/cgroup"  # where Linux says what a container may take


@contextmanager
def reused() -> Iterator[None]:
    """Within the block, freed memory is not given back: its pages need not be cleared again for every tensor."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MAP, _LARGE)
    library.mallopt(_TRIM, _LARGE)
    try:
        yield
    finally:
        library.malloc_trim(0)


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that no memory was to be had, of the processor or of an accelerator."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)  # torch's CPU


def peak_mb() -> float:
    """The most memory that this process has held; 0 where the system does not say (Windows)."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0.0
    return round(getrusage(RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)


def installed() -> int:
    """The bytes of this machine's memory; 0 where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def available() -> int:
    """The bytes that this process may still take, by the system or by the container it runs in; 0 if nobody says.

    Processes that a launcher has started on one machine have equal shares.
    """
    free = [installed() // 2]  # where the system does not say what is free
    with suppress(OSError, KeyError, ValueError):
        free = [1024 * int(_listed("/proc/meminfo", ":")["MemAvailable"].removesuffix("kB"))]
    with suppress(OSError, KeyError, ValueError):  # "max" is no number
        free += [int(Path(CONTAINER, "memory.max").read_text()) - int(_listed(f"{CONTAINER}/memory.stat", " ")["anon"])]
    return max(0, min(free)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _listed(file: str, between: str) -> dict[str, str]:
    return dict(line.split(between, 1) for line in Path(file).read_text().splitlines())


def _glibc() -> ctypes.CDLL | None:
    """This process's C library, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
