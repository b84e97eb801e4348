"""What a sweep found: its points, its averages, the best of them, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergelab.method import METHODS
from mergelab.recipes.recipe import Recipe
from mergelab.scores.knobs import EXPERTS, symbol
from mergelab.scores.scoring import Mean, TaskScore, mean_score, wins
from mergelab.words import counted


@dataclass(frozen=True)
class Point:
    """One value of the knob. facts: the method's, averaged over modules and experts, and those of the whole change.

    value: None for an average that stands beside all of them.
    """

    value: float | None
    recipe: Recipe
    facts: Mapping[str, float]
    scores: tuple[TaskScore, ...] = ()

    @property
    def mean(self) -> Mean | None:
        """The mean over tasks, if anything was scored."""
        return mean_score(self.scores) if self.scores else None


@dataclass(frozen=True)
class SweepReport:
    """All points, by rising value. baselines: the average of the same experts, per point if their number is swept."""

    knob: str
    title: str  # of the method
    points: tuple[Point, ...]
    baselines: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> int | None:
        """Which point scored best, of equals the first; None if none was scored, or if each had tasks of its own."""
        return None if self.knob == EXPERTS else _best([point.scores for point in self.points])

    def baseline(self, index: int) -> Point | None:
        """The average that a point is to be compared with."""
        value = self.points[index].value
        return next((b for b in self.baselines if self.knob != EXPERTS or b.value == value), None)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: a row per point, then the averages; the mean's interval, a column per task and per fact."""
        whole = [*self.points, *self.baselines]
        tasks = list(dict.fromkeys(score.task for point in whole for score in point.scores))
        facts = list(dict.fromkeys(fact for point in whole for fact in point.facts))
        headers = ["method", self.knob, "mean", "95 % from", "to", *tasks, *facts]
        return headers, [_row(point, tasks, facts, self) for point in whole]

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain JSON data."""
        best = self.best
        return {
            "knob": self.knob,
            "method": self.title,
            "best": None if best is None else self.points[best].value,
            "verdict": verdict(self),
            "points": [_plain(point) for point in self.points],
            "averages": [_plain(point) for point in self.baselines],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SweepReport":
        """What `to_dict` wrote."""
        points, averages = (tuple(map(_point, data[part])) for part in ("points", "averages"))
        return cls(data["knob"], data["method"], points, averages, tuple(data["notes"]))


def verdict(report: SweepReport) -> str:
    """What a sweep shows, and how sure it is: the best point, its interval, who else lies in it, the average."""
    best, count = report.best, len(report.points)
    if report.knob == EXPERTS and any(point.scores for point in report.points):
        return _by_number(report)
    if best is None:
        return f"{counted(count, 'point')} measured, none scored."
    point, mean = report.points[best], report.points[best].mean
    which = f"{symbol(report.knob)} {point.value:g}, {shown(mean, point)}"
    said = f"Best of {counted(count, 'point')} on the test prompts: {which}."
    within = [p.value for i, p in enumerate(report.points) if i != best and mean.low <= p.mean.value <= mean.high]
    if within:
        listed = ", ".join(f"{value:g}" for value in within)
        said += f" What {symbol(report.knob)} {listed} scores lies within that interval: the difference may be luck."
    return " ".join([said, *_against_average(report, best), *_on_the_other_half(report)])


def _by_number(report: SweepReport) -> str:
    """Each number of experts has tasks of its own, so that there is no best one: compare with the average instead."""
    said = []
    for i, point in enumerate(report.points):
        plain = report.baseline(i)
        against = (
            f", the average {shown(plain.mean, plain)}, p = {wins(point.scores, plain.scores)[2]:.2g}" if plain else ""
        )
        said.append(f"{counted(int(point.value), 'expert')}: {report.title} {shown(point.mean, point)}{against}")
    return "; ".join(said) + ". Each line is on the tasks of its own experts."


def shown(mean: Mean, point: Point) -> str:
    """A mean with its interval, as a person reads it."""
    if point.scores[0].measure == "exact match":
        return f"{mean.value:.1%} (95 %: {mean.low:.1%} to {mean.high:.1%})"
    if any(len(score.amounts) < 2 for score in point.scores):
        return f"perplexity {mean.value:.3g} (of one text: how sure that is cannot be said)"
    return f"perplexity {mean.value:.3g} (95 %: {mean.low:.3g} to {mean.high:.3g})"


def _against_average(report: SweepReport, best: int) -> list[str]:
    point, plain = report.points[best], report.baseline(best)
    if plain is None or not plain.scores:
        return []
    more, fewer, luck = wins(point.scores, plain.scores)
    tried = len(report.points)
    many = f", {tried} times that of one, as it is the best of {tried}" if tried > 1 else ""
    return [
        f"The average: {shown(plain.mean, plain)}. Prompt by prompt, the best point wins {more} and loses {fewer} "
        f"against it (sign test: p = {min(1.0, tried * luck):.2g}{many})."
    ]


def _on_the_other_half(report: SweepReport) -> list[str]:
    """The best point is picked on the very prompts that score it; so pick on half of them, and score on the rest."""
    points = report.points
    if len(points) < 2 or any(len(score.amounts) < 10 for score in points[0].scores):
        return []
    chosen = _best([tuple(score.half(odd=True) for score in point.scores) for point in points])
    rest = mean_score([score.half(odd=False) for score in points[chosen].scores])
    at = f"{symbol(report.knob)} {points[chosen].value:g}"
    return [f"Picked on every second prompt ({at}), it scores {shown(rest, points[chosen])} on the rest."]


def _best(scores: Sequence[tuple[TaskScore, ...]]) -> int | None:
    if not scores or not all(scores):
        return None
    sign = 1 if scores[0][0].higher_is_better else -1
    return max(range(len(scores)), key=lambda i: sign * mean_score(scores[i]).value)


def _row(point: Point, tasks: list[str], facts: list[str], report: SweepReport) -> list[Any]:
    mean = point.mean
    plain = any(point is baseline for baseline in report.baselines)
    own = {score.task: score.value for score in point.scores}
    middle = [mean.value, mean.low, mean.high] if mean else ["", "", ""]
    value = "" if point.value is None else point.value
    name = METHODS["linear"].title if plain else report.title
    return [name, value, *middle, *(own.get(t, "") for t in tasks), *(point.facts.get(f, "") for f in facts)]


def _plain(point: Point) -> dict[str, Any]:
    mean = point.mean
    data: dict[str, Any] = {"value": point.value, "recipe": point.recipe.to_dict(), "facts": dict(point.facts)}
    if mean:
        data["mean"] = {"value": mean.value, "low": mean.low, "high": mean.high}
    data["scores"] = [score.to_dict() for score in point.scores]
    return data


def _point(data: Mapping[str, Any]) -> Point:
    scores = tuple(map(TaskScore.from_dict, data["scores"]))
    return Point(data["value"], Recipe.from_dict(data["recipe"]), data["facts"], scores)
