"""What a merge was made from, to the byte: revisions and hashes of all files that decide its weights."""

import hashlib
import re
from pathlib import Path
from typing import Any

from mergelab.files.sources import revision_of
from mergelab.planning.plan import Plan

_SHA256 = re.compile(r"[0-9a-f]{64}")


def inputs(plan: Plan) -> dict[str, dict[str, str]]:
    """Source -> the sha256 of each of its weight files, and the commit if it came from the Hub."""
    found: dict[str, dict[str, str]] = {plan.recipe.base: _hashes(plan.base.folder, files_of(plan.base))}
    for expert in plan.experts:
        if expert.checkpoint is not None:
            found.setdefault(expert.checkpoint.source, _hashes(expert.checkpoint.folder, files_of(expert.checkpoint)))
        if expert.adapter is not None:
            files = {expert.adapter.path.name, "adapter_config.json"}
            found.setdefault(expert.adapter.source, _hashes(expert.adapter.path.parent, files))
    return found


def files_of(checkpoint: Any) -> set[str]:
    """The names of the weight files of a checkpoint, or of that which is seen in other coordinates or names."""
    while inner := getattr(checkpoint, "own", None) or getattr(checkpoint, "expert", None):
        checkpoint = inner
    return {entry.file for entry in checkpoint.entries.values()}


def _hashes(folder: Path, files: set[str]) -> dict[str, str]:
    revision = {"revision": commit} if (commit := revision_of(folder)) else {}
    return revision | {file: sha256_of(folder / file) for file in sorted(files)}


def sha256_of(path: Path) -> str:
    """The sha256 of a file; in the cache of the Hub a large file's name is its hash already."""
    name = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(name):
        return name
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
