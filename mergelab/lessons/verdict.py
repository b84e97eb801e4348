"""Whether one merge is better than another, prompt by prompt, in numbers and in words."""

from collections.abc import Sequence
from typing import Any

from mergelab.scores.scoring import mean_score, sign_test
from mergelab.scores.sweep_report import Point

ALPHA = 0.05  # a difference that luck makes less often than this is called one
TINY = 1e-4  # below this, nobody wants to know more of a p


def against(one: Point, other: Point) -> dict[str, Any]:
    """How many prompts one merge wins and loses against another, and whether that is more than luck: a sign test."""
    mine, theirs = ([a for score in point.scores for a in score.amounts] for point in (one, other))
    wins, losses, p = sign_test(mine, theirs)
    luck = "more than luck explains" if p < ALPHA else "no more than luck explains"
    return {"wins": wins, "losses": losses, "chance": f"p = {p:.2g}" if p >= TINY else f"p < {TINY:.4f}", "luck": luck}


def best_of(points: Sequence[Point]) -> Point:
    """The point with the highest mean score."""
    return max(points, key=lambda point: mean_score(point.scores).value)
