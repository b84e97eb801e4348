"""What the Repair tab can tell: bundled experts to merge, and how they are aligned first."""

from typing import Any

from mergelab.assets import ASSETS
from mergelab.recipes.recipe import Expert, Recipe

STORY = ASSETS / "analyses" / "digits-repair.json"  # what the tab opens with, made in advance
ALIGN = ("none", "weights", "activations", "best")  # best: all are tried, the average is judged on calibration data
FORM = "The recipe in the form"


def _recipe(*sources: str, base: str | None = None, method: str = "linear", **settings: Any) -> Recipe:
    return Recipe(base or sources[0], tuple(map(Expert, sources)), method, settings)


STORIES: dict[str, tuple[Recipe | None, str]] = {  # name -> what to merge, and how its experts are aligned first
    "Digits: two unrelated nets": (
        _recipe("digits/scratch-upright", "digits/scratch-invert"),
        "activations",
    ),
    "Digits: four unrelated nets": (
        _recipe(*(f"digits/scratch-{task}" for task in ("upright", "invert", "rot90", "mirror"))),
        "activations",
    ),
    "Digits: one task, two seeds": (_recipe("digits/scratch-upright", "digits/scratch-upright-2"), "activations"),
    "Digits: four experts of one base": (
        _recipe(*(f"digits/{task}" for task in ("upright", "invert", "rot90", "mirror")), base="digits/base"),
        "none",
    ),
    "Numbers: four experts of one base": (
        _recipe(
            *(f"numbers/{task}" for task in ("french", "german", "english", "spanish")), base="numbers/base",
            method="star", eta=50.0,
        ),
        "none",
    ),
    "Numbers: two unrelated Llamas": (
        _recipe("numbers/french", "numbers/scratch-french"),
        "activations",
    ),
    FORM: (None, "none"),
}  # fmt: skip
