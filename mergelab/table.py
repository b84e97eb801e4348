"""Headers and rows as text: CSV for programs, aligned columns for a terminal."""

import csv
import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from mergelab.errors import MergeError


def csv_text(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table as CSV, numbers in full."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([headers, *rows])
    return text.getvalue()


def aligned(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The table in columns of equal width, numbers with four digits."""
    cells = [list(map(cell, row)) for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells)


def cell(value: Any) -> str:
    """One cell as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_places(*paths: str | None) -> None:
    """MergeError unless a text file can be written at each of them (None: none is asked for). Leaves nothing there."""
    for path in filter(None, paths):
        with _refusals(path):
            place = Path(path).resolve()
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not _is_device(place):
                beside = _beside(place)
                beside.touch()
                beside.unlink()


def written_to(path: str, text: str) -> None:
    """Write a text file in place of one that is there, which stays as it was if the disk refuses: a MergeError."""
    with _refusals(path):
        place = Path(path).resolve()
        beside = place if _is_device(place) else _beside(place)
        try:
            beside.write_text(text, encoding="utf-8", newline="")
            beside.replace(place)
        finally:
            if beside != place:
                beside.unlink(missing_ok=True)


def _is_device(place: Path) -> bool:
    """Whether a place is a pipe or a terminal, which is written to and not replaced."""
    return place.exists() and not place.is_file()


def _beside(place: Path) -> Path:
    return place.with_name(f".{uuid4().hex[:12]}.partial")


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """What the disk refuses in the block as a MergeError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise MergeError(f"Cannot write '{path}': {getattr(error, 'strerror', None) or error}.") from None
