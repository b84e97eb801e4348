"""The recipes to start from: each a file with a title and a sentence above it, and its analysis made in advance."""

import gzip
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mergelab.assets import ASSETS
from mergelab.method import method_named
from mergelab.recipes.recipe import Recipe
from mergelab.report import Report

RECIPES, ANALYSES = ASSETS / "recipes", ASSETS / "analyses"
FIRST = "numbers-star"  # what the page opens with
# From the plain to the particular; a file that is not named here follows, by name.
_ORDER = [
    "numbers-star",
    "numbers-star-2",
    "numbers-star-8",
    "numbers-average",
    "numbers-lora",
    "numbers-star-by-module",
]


@dataclass(frozen=True)
class Example:
    """A recipe to start from. recipe: with all settings, as an analysis of it has them."""

    name: str
    title: str
    about: str
    recipe: Recipe

    @property
    def analysis(self) -> Path:
        """Where its analysis is shipped."""
        return ANALYSES / f"{self.name}.json.gz"


@lru_cache
def examples() -> dict[str, Example]:
    """Every recipe in assets/recipes, by the file's name, in the order of the list on the page."""
    found = {path.stem: _example(path) for path in sorted(RECIPES.glob("*.yaml"))}
    return {name: found[name] for name in sorted(found, key=lambda name: (_rank(name), name))}


def shipped_analysis(recipe: Recipe) -> Report | None:
    """The analysis that was made in advance of exactly this recipe."""
    known = {example.recipe.hash: example for example in examples().values()}
    example = known.get(recipe.hash)
    return Report.from_json(gzip.decompress(example.analysis.read_bytes()).decode()) if example else None


def with_all_settings(recipe: Recipe) -> Recipe:
    """The recipe as its analysis is kept: with the settings that it leaves at their defaults."""
    return replace(recipe, settings=method_named(recipe.method).checked(recipe.settings))


def _rank(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _example(path: Path) -> Example:
    """An example from its file; the comment on top is its title, and then what there is to see."""
    recipe = Recipe.read(path)
    lines = [
        line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    return Example(path.stem, lines[0], " ".join(lines[1:]), with_all_settings(recipe))
