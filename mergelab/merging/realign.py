"""An expert written out in a reference's coordinates: an ordinary folder that computes what the expert computes.

It appears whole or not at all, with a card and `alignment.json`: distances, objective, correlations, and by how much
the outputs differ.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergelab.align import BEST, HOW
from mergelab.align.calibration import bundled_batches, prompt_batches
from mergelab.align.opened import InCoordinates
from mergelab.errors import MergeError, did_you_mean
from mergelab.files.adapter import is_adapter
from mergelab.files.checkpoint import INDEX, SINGLE, Checkpoint
from mergelab.files.shards import ShardWriter
from mergelab.files.sources import companions, folder_of
from mergelab.files.stamp import check_readable, check_unchanged
from mergelab.markdown import plain
from mergelab.merging.output import new_folder
from mergelab.model import built, outputs, probe

WAYS = (*HOW[1:], BEST)


def realigned(
    expert: str,
    reference: str,
    out: str | Path,
    how: str = "weights",
    *,
    rotations: bool = True,
    prompts: Path | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Write `expert` to `out` in the coordinates of `reference`; yields each tensor's name as it is written.

    Returns what alignment.json holds. prompts: a text file, one calibration prompt a line, for "activations" and
    "best" (bundled models bring their own). MergeError says what does not fit; then nothing is written.
    """
    if how not in WAYS:
        raise MergeError(f"There is no alignment '{how}'. {did_you_mean(how, WAYS)}")
    own, target = _opened(expert), _opened(reference)
    check_readable(companions(own.folder))

    def data():
        if prompts is None:
            return bundled_batches(reference, target.folder)
        return prompt_batches(_lines(prompts), target.folder)

    view = InCoordinates(own, target, how, seed=seed, rotations=rotations, data=data)
    with new_folder(out) as folder:
        yield from _weights_written(folder, view)
        written = Checkpoint(folder, str(out))
        facts = {"expert": expert, "reference": reference, **view.facts(), "difference": _difference(own, written)}
        for path in companions(own.folder):
            shutil.copyfile(path, folder / path.name)
        check_unchanged({**target.stamps, **own.stamps})
        (folder / "alignment.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "README.md").write_text(_card(facts), encoding="utf-8")
    return facts


def _opened(source: str) -> Checkpoint:
    folder = folder_of(source)
    if is_adapter(folder):
        raise MergeError(f"'{source}' is an adapter: it has the coordinates of the model that it was trained on.")
    return Checkpoint(folder, source)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MergeError(f"Cannot read the calibration data '{path}': {reason}.") from None


def _weights_written(folder: Path, view: InCoordinates) -> Iterator[str]:
    """Write all tensors in the expert's own files and dtypes."""
    for file in sorted({entry.file for entry in view.entries.values()}):
        entries = {name: entry for name, entry in view.entries.items() if entry.file == file}
        writer = ShardWriter(folder / file, entries)
        writer.create()
        for name in entries:
            writer.put(name, view[name])
            yield name
    if [*{entry.file for entry in view.entries.values()}] != [SINGLE]:
        index = {"metadata": {}, "weight_map": {name: entry.file for name, entry in view.entries.items()}}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _difference(before: Checkpoint, after: Checkpoint) -> float | None:
    """The largest change of any output on random inputs; None for what its configuration cannot build."""
    config = before.config
    if not config.get("architectures"):
        return None
    batch = probe(config)
    first, second = (outputs(built(config, tensors), batch) for tensors in (before, after))
    return float((first - second).abs().max())


def _card(facts: dict[str, Any]) -> str:
    before, after = facts["distance before"], facts["distance after"]
    expert, reference = (plain(Path(facts[key]).name) for key in ("expert", "reference"))
    said = f", max |Δ outputs| {facts['difference']:.1e} on random inputs" if facts["difference"] is not None else ""
    return f"""---
library_name: transformers
tags: [mergelab, alignment]
---

# {expert}, in the coordinates of {reference}

The same function as `{expert}`{said}: its neurons stand in another order, and heads may be turned inside. Made with
mergelab, matched by {facts["how"]}.

| | before | after |
|---|---|---|
| relative distance to `{reference}` | {before:.4f} | {after:.4f} |
| cosine with `{reference}` | {facts["objective"][0]:.4f} | {facts["objective"][-1]:.4f} |

Mean matched correlation: {facts["mean correlation"]:.3f}. `alignment.json` has all of them.
"""
