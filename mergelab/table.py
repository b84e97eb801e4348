"""Headers and rows as text: CSV for programs, aligned columns for a terminal."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def written_to(path: str, text: str) -> None:
    """Write a text file; MergeError if the disk refuses."""
    try:
        Path(path).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise MergeError(f"Cannot write '{path}': {error.strerror}.") from None
