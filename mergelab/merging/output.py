"""The folder that a merge writes: the base's files with new weights, a model card, the recipe, the report.

It appears whole or not at all: all is written to a hidden folder beside it, which takes its place in one rename. Of a
process that is killed the hidden folder stays, and the same merge to the same place goes on with it.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO
from uuid import uuid4

from torch import Tensor

from mergelab.errors import MergeError
from mergelab.files.checkpoint import INDEX, SINGLE, Entry, read_json
from mergelab.files.lock import locked
from mergelab.files.shards import ShardWriter, sharded
from mergelab.files.sources import companions
from mergelab.files.tokenizer import write_tokenizer
from mergelab.merging.card import model_card
from mergelab.merging.journal import Journal
from mergelab.merging.walk import costs, in_order
from mergelab.planning.plan import Plan
from mergelab.recipes.recipe import Expert
from mergelab.report import LayerReport, Report

_LOCK = "lock"  # held by the process that merges, for as long as it lives


@contextmanager
def new_folder(
    out: str | Path, mark: str | None = None, stays: Callable[[BaseException], bool] = lambda error: False
) -> Iterator[Path]:
    """A hidden folder to write in. It becomes `out` if the block ends well, and vanishes if not, unless it `stays`.

    mark: twelve hex digits that tell this merge from others to the same place; what a killed one with the same mark
    has left is there again (None: nobody ever goes on). MergeError if `out` exists and is not empty, or for whatever
    the disk refuses.
    """
    place, missing = free_place(out)
    partial = _partial(place, mark or uuid4().hex[:12])
    try:
        lock = _claimed(partial)
    except OSError as error:
        _remove_empty(missing)
        raise MergeError(_refusal(error, out)) from error
    if lock is None:
        raise MergeError(f"Another process is making this very merge at '{out}'. Wait for it, or name another folder.")
    kept = False
    try:
        yield partial
        if place.is_dir():
            place.rmdir()  # it is empty
        partial.rename(place)
        (place / _LOCK).unlink()  # not before: a hidden folder without it would be nobody's, and stay
    except OSError as error:
        raise MergeError(_refusal(error, out)) from error
    except BaseException as error:
        kept = stays(error)
        raise
    finally:
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
            _remove_empty(missing)
        lock.close()


def is_unfinished(out: str | Path, mark: str) -> bool:
    """Whether a killed merge with this mark has left its hidden folder beside `out`, to be gone on with.

    MergeError if there cannot be one.
    """
    partial = _partial(free_place(out)[0], mark)
    try:
        return partial.is_dir()
    except OSError as error:  # its name is longer than that of `out`
        raise MergeError(_refusal(error, out)) from error


def _claimed(partial: Path) -> IO[bytes] | None:
    """The lock of a hidden folder, which is made if it is not there; None if another process holds it."""
    path = partial / _LOCK
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # removed under our hands, as what a killed merge had left: make it anew
            lock = locked(path)
            if lock is None or (path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())):
                return lock
            lock.close()


def _partial(place: Path, mark: str) -> Path:
    return place.with_name(f".{place.name}.{mark}.partial")


def remove_leftovers(out: str | Path, mark: str) -> tuple[str, ...]:
    """Remove what killed merges of another mark have left of themselves beside `out`; a note if there was any."""
    place, _ = free_place(out)
    ours, found = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{12}}\.partial"), 0
    for folder in place.parent.iterdir() if place.parent.is_dir() else ():
        if ours.fullmatch(folder.name) and mark not in folder.name:
            with suppress(OSError):
                if _is_begun(folder) and (lock := locked(folder / _LOCK, sure=True)):
                    with lock:
                        shutil.rmtree(folder)
                    found += 1
    return ("What another merge to this place had left unfinished was removed.",) * bool(found)


def _is_begun(folder: Path) -> bool:
    """Whether a hidden folder has more in it than its lock: one that has not may be about to be locked."""
    names = {path.name for path in folder.iterdir()}
    return _LOCK in names and len(names) > 1


def free_place(out: str | Path) -> tuple[Path, list[Path]]:
    """The path of `out`, and its parents that are not there; MergeError if it is taken, or cannot be replaced."""
    try:
        place = Path(out).expanduser().resolve()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise MergeError(f"'{out}' exists already. Name a new folder: nothing is overwritten.")
        if place.is_dir() and (place.samefile(os.curdir) or place.is_mount()):
            what = "a disk of its own" if place.is_mount() else "the folder that you are in"
            raise MergeError(f"'{out}' is {what}: nothing can take its place whole. Name a new folder inside it.")
        return place, [parent for parent in place.parents if not parent.exists()]
    except (OSError, RuntimeError, ValueError) as error:
        raise MergeError(_refusal(error, out)) from error


def _remove_empty(parents: list[Path]) -> None:
    for parent in parents:  # made for a folder that did not come to be
        with suppress(OSError):
            parent.rmdir()


def _refusal(error: Exception, out: str | Path) -> str:
    if getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return f"The disk is full: '{out}' was not written. Free some space, or choose another folder."
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        return f"The name of '{out}' is too long for this disk. Choose a shorter one."
    why = str(getattr(error, "strerror", None) or error).rstrip(".")
    return f"Cannot write '{out}': {why}. Choose a folder that you may write to."


class Weights:
    """The weight files of the merged model: the base's names, shards and, unless the recipe says otherwise, dtypes.

    rank: the number of this process among those that write into the same folder.
    """

    def __init__(self, folder: Path, plan: Plan, rank: int = 0):
        self.folder, self.plan, self.journal = folder, plan, Journal(folder, rank)
        written = {*plan.names, *plan.copied}
        entries = {n: e.cast(plan.recipe.written_dtype) for n, e in plan.base.entries.items() if n in written}
        entries = sharded(entries, plan.recipe.shard_size)
        shards: dict[str, dict[str, Entry]] = {entry.file: {} for entry in entries.values()}
        for name in (*in_order(costs(plan)), *plan.copied):  # as they will be finished
            shards[entries[name].file][name] = entries[name]
        self.entries = entries
        self._beside = ThreadPoolExecutor(1, "mergelab-hash")
        self.writers = {file: ShardWriter(folder / file, shard, self._beside) for file, shard in shards.items()}
        self._checksums: dict[str, int] = {}  # of tensors that are being written

    def begin(self) -> dict[str, LayerReport]:
        """Make the files. What of them is finished already, by the same merge before it was killed."""
        if all(writer.is_there for writer in self.writers.values()):
            known = {name: entry for name, entry in self.journal.finished().items() if name in self.entries}
            sound = {n: layer for n, (layer, of_it) in known.items() if self._writer(n).checksum(n) == of_it}
            for name in sound:
                self._writer(name).finished(name)
            return sound
        self.journal.clear()
        for writer in self.writers.values():
            writer.create()
        return {}

    def close(self) -> None:
        """Wait for what is hashed at this moment, and hash no more: nothing holds a file any longer."""
        self._beside.shutdown(cancel_futures=True)

    def put(self, name: str, tensor: Tensor, first: int = 0) -> None:
        """Write one merged tensor in its place, or its rows from `first` on."""
        self._checksums[name] = self._writer(name).put(name, tensor, first, self._checksums.get(name, 0))

    def note(self, layer: LayerReport) -> None:
        """Write down that all of a tensor is there."""
        self.journal.add(layer, self._checksums.pop(layer.name))
        self._writer(layer.name).finished(layer.name)

    def _writer(self, name: str) -> ShardWriter:
        return self.writers[self.entries[name].file]

    def finish(self) -> dict[str, str]:
        """Copy what is not merged, write the index that several files need. The sha256 of each weight file."""
        for name in self.plan.copied:
            self._writer(name).put(name, self.plan.base[name])
        self.journal.clear()
        if [*self.writers] != [SINGLE]:
            size = sum(writer.size for writer in self.writers.values())
            index = {"metadata": {"total_size": size}, "weight_map": {n: e.file for n, e in self.entries.items()}}
            _write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        return {file: self.writers[file].sha256() for file in sorted(self.writers)}


def write_papers(folder: Path, plan: Plan, report: Report) -> None:
    """Write everything beside the weights: configuration, tokenizer, model card, recipe, report."""
    for path in companions(plan.base.folder):
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


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))  # the same bytes on every system
