"""A table's numbers on the page: to look at, and as a file to take home."""

from typing import Any

from mergelab.lab.lab import Lab
from mergelab.lab.saved import saved_table
from mergelab.table import cell

Table = tuple[list[str], list[list[Any]]]  # headers and rows, as reports give them


def frame_of(table: Table) -> dict[str, Any]:
    """What gradio is given to show: fractions with four digits, all else as it is."""
    headers, rows = table
    return {"headers": headers, "data": [[cell(c) if isinstance(c, float) else c for c in row] for row in rows]}


def frame_and_file(lab: Lab, name: str, table: Table) -> tuple[dict[str, Any], str]:
    """A table to look at, and the path of the CSV file `mergelab-{name}.csv` with its numbers in full."""
    return frame_of(table), saved_table(lab, name, *table)
