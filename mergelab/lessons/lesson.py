"""What a lesson is: a few sentences, a picture, a sentence whose numbers are measured; a chapter is a list of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mergelab.plots.parts import Figure
from mergelab.recipes.recipe import Recipe

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Lesson:
    """One step of the path.

    words: two or three sentences, formulas between dollars. measured: the numbers, computed when they are first asked
    for. says: a sentence with a place for each number. drawn: numbers -> picture; None where the reader's own matrix
    stands. recipe, tab, fact: what its button sets, which tab it opens, and which fact that tab shows.
    """

    title: str
    words: str
    measured: Callable[[], Facts]
    says: str
    drawn: Callable[[Facts], Figure] | None
    recipe: Recipe
    tab: str = "spectra"
    fact: str | None = None

    @property
    def facts(self) -> Facts:
        """The numbers; measured once in a process."""
        return _kept(self.measured)

    @property
    def said(self) -> str:
        """The sentence with its numbers in it, as Markdown."""
        return " ".join(self.says.format(**self.facts).split())

    def figure(self) -> Figure | None:
        """The picture; its alternative text ends with the sentence."""
        if self.drawn is None:
            return None
        figure = self.drawn(self.facts)
        figure["layout"]["meta"]["alt"] += " " + re.sub(r"\*", "", self.said)
        return figure


@dataclass(frozen=True)
class Chapter:
    """Several lessons on one thing. name: the beginning of their addresses."""

    name: str
    title: str
    lessons: Sequence[Lesson]


@cache
def _kept(measured: Callable[[], Facts]) -> Facts:
    return measured()
