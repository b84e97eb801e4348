"""What a merge was made from, to the byte: revisions and hashes of all files that decide its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergelab.files.sources import revision_of
from mergelab.files.stamp import Stamp
from mergelab.planning.plan import Plan


def input_files(plan: Plan) -> dict[str, list[Path]]:
    """Source -> the files of it that hold the weights; of an adapter its configuration, too."""
    found = {plan.recipe.base: _paths(plan.base.folder, files_of(plan.base))}
    for expert in plan.experts:
        if expert.checkpoint is not None:
            mine = _paths(expert.checkpoint.folder, files_of(expert.checkpoint))
            found.setdefault(expert.checkpoint.source, mine)
        if expert.adapter is not None:
            mine = _paths(expert.adapter.path.parent, {expert.adapter.path.name, "adapter_config.json"})
            found.setdefault(expert.adapter.source, mine)
    return found


def stamps(plan: Plan) -> dict[Path, Stamp]:
    """Each file that decides the weights, configuration and tokenizer too, as it was when the plan first opened it."""
    opened = [part for expert in plan.experts for part in (expert.checkpoint, expert.adapter) if part is not None]
    return {path: stamp for part in [*reversed(opened), plan.base] for path, stamp in part.stamps.items()}


def inputs(plan: Plan, digests: Mapping[Path, str]) -> dict[str, dict[str, str]]:
    """Source -> the sha256 of each of its weight files, and the commit if it came from the Hub."""
    return {source: _said(paths, digests) for source, paths in input_files(plan).items()}


def _said(paths: list[Path], digests: Mapping[Path, str]) -> dict[str, str]:
    revision = {"revision": commit} if (commit := revision_of(paths[0].parent)) else {}
    return revision | {path.name: digests[path] for path in paths}


def _paths(folder: Path, files: set[str]) -> list[Path]:
    return [folder / file for file in sorted(files)]


def files_of(checkpoint: Any) -> set[str]:
    """The names of the weight files of a checkpoint, or of that which is seen in other coordinates or names."""
    while inner := getattr(checkpoint, "own", None) or getattr(checkpoint, "expert", None):
        checkpoint = inner
    return {entry.file for entry in checkpoint.entries.values()}
