"""What an unfinished merge has done so far, a line per tensor, so that one that was killed can go on.

The lines lie beside the weights, in the hidden folder that the merge is made in, and go when it is whole. A line that
was torn by the kill is as good as none; a tensor whose bytes are not those that its line says is merged again.
"""

import hashlib
import json
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mergelab.merging.inputs import stamps
from mergelab.planning.plan import Plan
from mergelab.report import LayerReport


class Journal:
    """The journal of one of the processes that merge into a folder."""

    def __init__(self, folder: Path, rank: int = 0):
        self.folder, self.path, self._lock = folder, folder / f"journal-{rank}.jsonl", threading.Lock()

    def add(self, layer: LayerReport, checksum: int) -> None:
        """Write down that a tensor is finished. checksum: of its bytes in the file."""
        line = f'{{"checksum": {checksum}, "layer": {layer.to_json()}}}\n'
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def finished(self) -> dict[str, tuple[LayerReport, int]]:
        """Every tensor that any process has written down in this folder, with the checksum of its bytes."""
        found = [_read(line) for path in self._all() for line in path.read_text("utf-8", "replace").splitlines()]
        return {layer.name: (layer, checksum) for layer, checksum in filter(None, found)}

    def clear(self) -> None:
        """Forget all of it."""
        for path in self._all():
            path.unlink()

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("journal-*.jsonl"))


def _read(line: str) -> tuple[LayerReport, int] | None:
    try:
        data = json.loads(line)
        return LayerReport.from_json(json.dumps(data["layer"])), int(data["checksum"])
    except (ValueError, KeyError, TypeError):  # torn
        return None


def fingerprint(plan: Plan, device: Any) -> str:
    """Twelve hex digits for all that decides the bytes: the recipe, each input file's stamp, versions, device.

    An unfinished merge is gone on with only where this is the same.
    """
    settings = sorted(plan.settings.items())
    said = [
        plan.recipe.hash,
        settings,
        plan.names,
        str(device).split(":")[0],
        *map(_version, ("torch", "numpy", "mergelab")),
    ]
    said += [stamp for _, stamp in sorted(stamps(plan).items())]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that is not installed
        return ""
