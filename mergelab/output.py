"""The folder that a merge writes: the base's files with new weights, a model card, the recipe, the report.

It appears whole or not at all: all is written to a hidden folder beside it, which takes its place in one rename.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from mergelab.card import model_card
from mergelab.checkpoint import INDEX, SINGLE, Entry, ShardWriter, read_json
from mergelab.errors import MergeError
from mergelab.inputs import sha256
from mergelab.plan import Plan
from mergelab.recipe import Expert
from mergelab.report import Report
from mergelab.shards import sharded
from mergelab.sources import COMPANIONS
from mergelab.tokenizer import write_tokenizer

_NOT_COPIED = ("*.index.json", "adapter_config.json", "report.json")


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A hidden folder to write in. It becomes `out` if the block ends well, and vanishes if not.

    MergeError if `out` exists and is not empty, or for whatever the disk refuses.
    """
    try:
        place = Path(out).expanduser().resolve()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise MergeError(f"'{out}' exists already. Name a new folder: nothing is overwritten.")
        missing = [parent for parent in place.parents if not parent.exists()]
    except (OSError, RuntimeError, ValueError) as error:
        raise MergeError(_refusal(error, out)) from error
    partial = place.with_name(f".{place.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if place.is_dir():
            place.rmdir()  # it is empty
        partial.rename(place)
    except OSError as error:
        raise MergeError(_refusal(error, out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:  # made for a folder that did not come to be
            with suppress(OSError):
                parent.rmdir()


def _refusal(error: Exception, out: str | Path) -> str:
    if getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return f"The disk is full: '{out}' was not written. Free some space, or choose another folder."
    return f"Cannot write '{out}': {getattr(error, 'strerror', None) or error}. Choose a folder that you may write to."


class Weights:
    """The weight files of the merged model: the base's names, shards and, unless the recipe says otherwise, dtypes."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        written = {*plan.names, *plan.copied}
        entries = {n: e.cast(plan.recipe.written_dtype) for n, e in plan.base.entries.items() if n in written}
        entries = sharded(entries, plan.recipe.shard_size)
        shards: dict[str, dict[str, Entry]] = {}
        for name, entry in entries.items():
            shards.setdefault(entry.file, {})[name] = entry
        self.entries = entries
        self.writers = {file: ShardWriter(folder / file, shard) for file, shard in shards.items()}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one merged tensor in its place."""
        self.writers[self.entries[name].file].put(name, tensor)

    def finish(self) -> dict[str, str]:
        """Copy what is not merged, write the index that several files need. The sha256 of each weight file."""
        for name in self.plan.copied:
            self.put(name, self.plan.base[name])
        if [*self.writers] != [SINGLE]:
            size = sum(writer.size for writer in self.writers.values())
            index = {"metadata": {"total_size": size}, "weight_map": {n: e.file for n, e in self.entries.items()}}
            _write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        return {file: sha256(self.folder / file) for file in sorted(self.writers)}


def write_papers(folder: Path, plan: Plan, report: Report) -> None:
    """Write everything beside the weights: configuration, tokenizer, model card, recipe, report."""
    for path in _companions(plan.base.folder):
        shutil.copyfile(path, folder / path.name)
    write_tokenizer(folder, plan.tokenizer, plan.template)
    if plan.recipe.written_dtype and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
        config |= dict.fromkeys(keys, plan.recipe.written_dtype)
        _write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    recipe = replace(plan.recipe, settings=plan.settings, experts=_portable(plan))
    _write_text(folder / "recipe.yaml", recipe.to_yaml())
    _write_text(folder / "report.json", report.to_json())
    _write_text(folder / "README.md", model_card(recipe, plan.method, report, plan.folders))


def _portable(plan: Plan) -> tuple[Expert, ...]:
    """The experts as mergekit takes them: an adapter stands behind the base that it is laid upon."""
    alone = [expert.checkpoint is None and "+" not in e.source for e, expert in zip(plan.recipe.experts, plan.experts)]
    return tuple(
        replace(e, source=f"{plan.recipe.base}+{e.source}") if adapter else e
        for e, adapter in zip(plan.recipe.experts, alone)
    )


def _companions(folder: Path) -> Iterator[Path]:
    for path in sorted({path for pattern in COMPANIONS for path in folder.glob(pattern)}):
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
            yield path


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))  # the same bytes on every system
