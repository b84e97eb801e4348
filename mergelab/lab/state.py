"""What the files behind a name are just now, in a few letters: what is made of them is kept under these, too.

A bundled model is as it was shipped: of it there is nothing to tell. One of the Hub is a commit, to which its name was
last seen to lead.
"""

import hashlib
import json
from pathlib import Path

from mergelab.assets import ASSETS
from mergelab.files.sources import commit_here, folder_here
from mergelab.files.stamp import stamp_of
from mergelab.limits import sources
from mergelab.planning.opened import split
from mergelab.recipes.recipe import Recipe


def folder_state(folder: Path) -> str:
    """Twelve hex digits for the files in a folder: others once one is changed, added or gone. '' for a bundled one."""
    if folder.resolve().is_relative_to(ASSETS):
        return ""
    stamps = [stamp_of(path) for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:12]


def source_state(source: str) -> str:
    """The states of the folders or commits that a source names on this machine. MergeError if nobody can have it."""
    parts = [part for part in split(source) if part]
    return "".join(folder_state(folder) if (folder := folder_here(part)) else commit_here(part) for part in parts)


def recipe_state(recipe: Recipe) -> str:
    """The states of all folders that a recipe names on this machine; MergeError as of `source_state`."""
    return "".join(map(source_state, sources(recipe)))
