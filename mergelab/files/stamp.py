"""What tells a file from what it was before a change, without a look into it. Needs nothing but Python."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mergelab.errors import MergeError


class Stamp(NamedTuple):
    """A file's place and number, its size in bytes, and when it was last written and last put there (nanoseconds).

    The last of these cannot be set by hand: it tells a file from another one of equal size and date in its place.
    """

    place: str
    number: int
    size: int
    written: int
    put: int


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file as it is now; MergeError if it is gone."""
    try:
        about = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return Stamp(str(path), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def check_unchanged(stamps: Mapping[Path, Stamp]) -> None:
    """MergeError if a file is not what it was when it was stamped. Other rights or links to it are no change."""
    for path, stamp in stamps.items():
        if stamp_of(path)._replace(put=stamp.put) != stamp:
            raise MergeError(f"'{path}' was changed after it was opened, so nothing was made of it. Run this again.")


def check_readable(paths: Iterable[Path]) -> None:
    """MergeError for the first of these files that this process may not read."""
    for path in paths:
        try:
            open(path, "rb").close()
        except OSError as error:
            why = error.strerror or error
            raise MergeError(f"Cannot read '{path}': {why}. Give this user the right to read it.") from None


def unreadable(path: Path, error: OSError) -> MergeError:
    """The error for a file that was there when the work began, and cannot be read now."""
    return MergeError(f"Cannot read '{path}' any more: {error.strerror or error}. Put it back, and run this again.")
