"""What a merge was made from, to the byte: revisions and hashes of all files that decide its weights."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mergelab.files.sources import revision_of
from mergelab.planning.plan import Plan

_SHA256 = re.compile(r"[0-9a-f]{64}")


def input_files(plan: Plan) -> dict[str, list[Path]]:
    """Source -> the files of it that decide the weights."""
    found = {plan.recipe.base: _paths(plan.base.folder, files_of(plan.base))}
    for expert in plan.experts:
        if expert.checkpoint is not None:
            mine = _paths(expert.checkpoint.folder, files_of(expert.checkpoint))
            found.setdefault(expert.checkpoint.source, mine)
        if expert.adapter is not None:
            mine = _paths(expert.adapter.path.parent, {expert.adapter.path.name, "adapter_config.json"})
            found.setdefault(expert.adapter.source, mine)
    return found


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


@contextmanager
def hashed(paths: Iterable[Path]) -> Iterator[Callable[[], dict[Path, str]]]:
    """The sha256 of files, found beside what else is done in the block; the call that is given waits for them."""
    with ThreadPoolExecutor(1, "mergelab-hash") as pool:
        jobs = {path: pool.submit(sha256_of, path) for path in paths}
        try:
            yield lambda: {path: job.result() for path, job in jobs.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def sha256_of(path: Path) -> str:
    """The sha256 of a file; in the cache of the Hub a large file's name is its hash already."""
    name = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(name):
        return name
    about = path.stat()
    return _digest(path, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(4096)
def _digest(path: Path, *identity: int) -> str:
    """Read once in a process, as long as the file is the same by its number, size and date."""
    digest, room = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(room):
            digest.update(room[:count])
    return digest.hexdigest()
