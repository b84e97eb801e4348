"""Which merges the lessons score, and the answers of these merges: shipped, so that a step waits for no forward pass.

Kept is which prompts each merge got right, one bit a prompt; shares, intervals and tests are computed from them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mergelab.assets import ASSETS
from mergelab.method import METHODS
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.scores.knobs import EXPERTS
from mergelab.scores.scoring import TaskScore
from mergelab.scores.sweep_report import Point, SweepReport

ANSWERS = ASSETS / "analyses" / "lessons.json"  # made by assets/make_lessons.py
SKILLS = ("french", "german", "english", "spanish", "morse", "reverse", "roman", "sort")


def merge_of(count: int, method: str, **settings: Any) -> Recipe:
    """The recipe of the first `count` experts of the numbers family, by some method."""
    experts = tuple(Expert(f"numbers/{skill}") for skill in SKILLS[:count])
    return Recipe("numbers/base", experts, method, settings)


@dataclass(frozen=True)
class Scored:
    """One sweep of the lessons. asked: the tasks; None for those of each merge's own experts."""

    recipe: Recipe
    knob: str
    values: tuple[float, ...]
    asked: tuple[str, ...] | None = None


_ETAS = tuple(float(eta) for eta in range(10, 101, 10))
_COUNTS = tuple(float(count) for count in range(2, 9))
SCORED = {
    "one": Scored(
        merge_of(1, "task_arithmetic"),
        "lambda",
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4),
        ("french", "german"),
    ),
    "star": Scored(merge_of(4, "star"), "eta", _ETAS),
    "cut": Scored(merge_of(4, "star", rescale=False), "eta", _ETAS),
    "scale": Scored(
        merge_of(4, "task_arithmetic"), "lambda", (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8, 1.0)
    ),
    "star by number": Scored(merge_of(8, "star"), EXPERTS, _COUNTS),
    "drm by number": Scored(merge_of(8, "drm_h", drop=0.5), EXPERTS, _COUNTS),
}


@cache
def answers(name: str) -> SweepReport:
    """What a sweep of SCORED found, from the shipped answers; the recipe of each point is that of the whole sweep."""
    kept = json.loads(ANSWERS.read_text(encoding="utf-8"))[name]
    recipe = SCORED[name].recipe
    points = [tuple(_point(plain, recipe) for plain in kept[kind]) for kind in ("points", "baselines")]
    return SweepReport(SCORED[name].knob, METHODS[recipe.method].title, *points)


def packed(report: SweepReport) -> dict[str, Any]:
    """A sweep as plain JSON data: each point with its facts, and a hexadecimal digit for every four prompts."""
    return {kind: [_plain(point) for point in getattr(report, kind)] for kind in ("points", "baselines")}


def _plain(point: Point) -> dict[str, Any]:
    facts = {name: float(f"{value:.5g}") for name, value in point.facts.items()}
    right = {score.task: _digits(score.amounts) for score in point.scores}
    return {"value": point.value, "facts": facts, "right": right}


def _point(plain: dict[str, Any], recipe: Recipe) -> Point:
    scores = tuple(_score(task, digits) for task, digits in plain["right"].items())
    return Point(plain["value"], recipe, plain["facts"], scores)


def _digits(amounts: Sequence[float]) -> str:
    """One bit a prompt after a first one that is always set, as a hexadecimal number."""
    return f"{int('1' + ''.join('1' if amount else '0' for amount in amounts), 2):x}"


def _score(task: str, digits: str) -> TaskScore:
    bits = f"{int(digits, 16):b}"[1:]
    return TaskScore(task, "exact match", tuple(map(float, bits)), (1,) * len(bits))
