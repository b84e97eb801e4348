"""Whether one merge is better than another, prompt by prompt, in numbers and in words."""

from collections.abc import Sequence
from typing import Any

from mergelab.scores.scoring import ALPHA, mean_score, wins
from mergelab.scores.sweep_report import Point

TINY = 1e-4  # below this, nobody wants to know more of a p


def against(one: Point, other: Point) -> dict[str, Any]:
    """How many prompts one merge wins and loses against another, and whether that is more than luck: a sign test."""
    more, fewer, p = wins(one.scores, other.scores)
    luck = "more than luck explains" if p < ALPHA else "no more than luck explains"
    return {"wins": more, "losses": fewer, "chance": f"p = {p:.2g}" if p >= TINY else f"p < {TINY:.4f}", "luck": luck}


def best_of(points: Sequence[Point]) -> Point:
    """The point with the highest mean score."""
    return max(points, key=lambda point: mean_score(point.scores).value)
