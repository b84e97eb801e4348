"""What is found, as files to take home: a table as CSV, an analysis as CSV and JSON, a folder as a zip."""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergelab.lab.lab import Lab
from mergelab.recipes.recipe import Recipe
from mergelab.report import Report
from mergelab.table import csv_text


def saved_table(lab: Lab, name: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as a CSV file to download; its path."""
    text = csv_text(headers, rows)
    path = lab.home / "tables" / hashlib.sha256(text.encode()).hexdigest()[:16] / f"mergelab-{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def saved_analysis(lab: Lab, report: Report) -> tuple[Path, Path]:
    """An analysis as files to download: its table as CSV, all of it as JSON."""
    folder = lab.home / "analyses" / Recipe.from_dict(report.recipe).hash
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "mergelab-analysis.csv", folder / "mergelab-analysis.json"
    paths[0].write_text(csv_text(*report.table()), encoding="utf-8", newline="")
    paths[1].write_text(report.to_json(), encoding="utf-8")
    return paths


def zipped(folder: Path) -> Path:
    """All files of a folder as one uncompressed zip beside it (weights do not compress)."""
    path = folder.with_name(f"{folder.name}.zip")
    if not path.is_file():
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{folder.name}/{file.name}")
    return path
