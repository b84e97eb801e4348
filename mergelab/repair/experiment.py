"""One merge, looked at and repaired for each of its tasks: variance, correlations, patches, scores and controls.

Works on models in memory, and reports what it is at as it goes. It does not know where they come from, nor what is
remembered of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.maths.moments import variance_kept
from mergelab.model import Running
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.repair import (
    FEWEST,
    MOST,
    How,
    Patch,
    Site,
    Statistics,
    applied,
    joined,
    mean_goals,
    repair,
    sites,
    statistics,
)  # fmt: skip
from mergelab.repair.calibration import AT_ONCE, batches_of
from mergelab.repair.control import check_coordinates, repaired_score
from mergelab.repair.export import folded
from mergelab.repair.fit import cut
from mergelab.repair.head import with_head
from mergelab.repair.order import mean_weights
from mergelab.repair.outcome import EXPERT, MERGED, PLAIN, REPAIRED, Matching, Outcome, Sample, Trial
from mergelab.repair.statistics import Batch, rows_at
from mergelab.report import Channels, RepairReport
from mergelab.tasks import own_pictures, own_score, own_task

Score = Callable[[nn.Module], float]
_ROWS = 4096  # of an activation: enough to see a correlation
_HISTOGRAM = 2000  # correlations that are kept for the picture


@dataclass(frozen=True)
class Subject:
    """One task of a trial: the expert that knows it, in the merged model's coordinates, its data, and how to score."""

    name: str
    expert: Running
    batches: list[Batch]
    score: Score | None
    tests: int = 0  # that it is scored on


@dataclass(frozen=True)
class Stage:
    """A merge and its tasks in one system of coordinates."""

    model: Running
    subjects: list[Subject]
    where: tuple[Site, ...]
    goals: list[tuple[Statistics, list[Batch]]]  # for each task: the moments to reach, the samples to reach them on


# One task ---------------------------------------------------------------------------------------------------


def subject(name: str, source: str, expert: Running, most: int, lines: Sequence[Sample] = ()) -> Subject:
    """A task by its expert: bundled pictures or prompts, or one's own lines; at most so many of them.

    MergeError if there are none.
    """
    pictures, task, score = own_pictures(source), own_task(source), own_score(source, expert.tokenizer)
    if pictures and not lines:
        some = pictures.calibration.images[:most]
        return Subject(name, expert, cut({"pixel_values": some}, AT_ONCE), score, len(pictures.test.labels))
    samples = lines or (task.calibration if task else ())
    if not samples:
        raise MergeError(
            f"There is no calibration data for '{name}': only bundled experts bring their own. Paste at least 4 "
            "prompts of its task, or upload a file of them."
        )
    return Subject(name, expert, batches_of(expert, samples[:most]), score, len(task.test) if task else 0)


def body_for(model: nn.Module, subject: Subject, trial: Trial) -> nn.Module:
    """The model that this task sees: a classifier with the expert's own head, if the trial wants that."""
    return with_head(model, subject.expert.model) if trial.own_heads and subject.expert.tokenizer is None else model


def goals_of(subjects: Sequence[Subject], where: Sequence[Site], trial: Trial) -> list[tuple[Statistics, list[Batch]]]:
    """For each task the moments to reach, and the samples to reach them on."""
    if trial.target == "task":
        return [(statistics(one.expert.model, one.batches, where), one.batches) for one in subjects]
    union = [batch for one in subjects for batch in one.batches]
    found = [statistics(one.expert.model, union, where) for one in subjects]
    mean = mean_goals(found, mean_weights(trial.recipe.experts))
    return [(mean, union)] * len(subjects)


def stage_of(model: Running, subjects: list[Subject], trial: Trial) -> Stage:
    """A merge with its tasks, measured: where to repair it, and towards what."""
    where = sites(subjects[0].expert.model, trial.sites)
    return Stage(model, subjects, where, goals_of(subjects, where, trial))


def repaired(
    model: nn.Module, one: Subject, goals: Statistics, batches: list[Batch], where: Sequence[Site], trial: Trial
) -> tuple[Patch, RepairReport]:
    """One task's repair of a merged model: its patch, the channels before and after, and the scores of all three."""
    body = body_for(model, one, trial)
    patch, report = repair(body, goals, batches, where, trial.how, task=one.name, target=trial.target)
    scores = scored(one.score, one.score(one.expert.model), body, patch) if one.score else {}
    return patch, replace(report, scores=scores)


def scored(score: Score, expert: float, body: nn.Module, patch: Patch) -> dict[str, float]:
    """What the expert, the merge and its repair score. expert: its own score."""
    with applied(body, patch):
        after = score(body)
    return {EXPERT: expert, MERGED: score(body), REPAIRED: after}


def proven(report: RepairReport, body: nn.Module, patch: Patch, batches: list[Batch]) -> RepairReport:
    """The report, with what the repair becomes as weights: its largest error, the sites without a place, or why not."""
    try:
        done = folded(body, patch, {key: tensor[:8] for key, tensor in joined(batches).items()})
    except MergeError as error:
        return replace(report, notes=(*report.notes, str(error)))
    return replace(report, unfolded=done.unfolded, difference=done.difference)


def samples_each(target: str, samples: int, tasks: int) -> int:
    """Calibration samples a task: for the mean over experts, those of all tasks go into one pass."""
    return samples if target == "task" else min(samples, max(FEWEST, MOST // tasks))


def controlled(
    name: str, body: nn.Module, score: Score, goals: Statistics, batches: list[Batch], where: Sequence[Site], how: How
) -> dict[str, float]:
    """What another model scores on a task, before and after the same repair, by its name."""
    return {name: score(body), f"{name}, {REPAIRED}": repaired_score(body, goals, batches, where, score, how)}


def with_experts(recipe: Recipe, experts: tuple[Expert, ...]) -> Recipe:
    """The same merge of other experts: of one alone, its average, for many methods need two."""
    alone = {"method": "linear", "settings": {}} if len(experts) == 1 else {}
    return replace(recipe, experts=experts, **alone)


# Two experts ------------------------------------------------------------------------------------------------


def correlations(one: nn.Module, other: nn.Module, batch: Batch, where: Sequence[Site]) -> dict[str, Tensor]:
    """How well channels with the same number agree in two models, site by site, on the same samples. (channel,)"""
    seen = [rows_at(model, batch, where, _ROWS) for model in (one, other)]
    return {name: _correlation(seen[0][name], seen[1][name]) for name in seen[0] if name in seen[1]}


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    one, other = one - one.mean(0), other - other.mean(0)
    size = (one.square().sum(0) * other.square().sum(0)).sqrt()
    return torch.where(size > 0, (one * other).sum(0) / size.clamp(min=1e-30), 0.0)


def agreement(subjects: Sequence[Subject], where: Sequence[Site]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Over all pairs of experts: the mean correlation at each site, and the correlations of single channels."""
    found = [
        correlations(one.expert.model, other.expert.model, one.batches[0], where)
        for one, other in combinations(subjects, 2)
    ]
    if not found:
        return (), ()
    means = tuple(fmean(float(pair[name].mean()) for pair in found) for name in found[0])
    every = torch.cat([channels for pair in found for channels in pair.values()])
    every = every[:: max(1, len(every) // _HISTOGRAM)]
    return means, tuple(round(value, 3) for value in every.tolist())


def theory_of(means: Sequence[float], count: int) -> tuple[float, ...]:
    """The share of its variance that an average of `count` equally strong channels keeps, site by site."""
    return tuple(round(variance_kept(count, max(mean, -1 / max(1, count - 1))), 5) for mean in means)


def looked_at(trial: Trial, align: str, matching: Matching, stages: list[Stage]) -> Outcome:
    """What can be said of the experts before any repair: how they agree, and what an average of them keeps."""
    found = [agreement(stage.subjects, stage.where) for stage in stages]
    matching = replace(matching, before=found[0][1], after=found[-1][1] if align != "none" else ())
    asked = {key: value for key, value in asdict(trial).items() if key not in ("recipe", "lines", "tasks")}
    asked |= {"recipe": trial.recipe.to_dict(), "align": align, "lines": len(trial.lines)}
    notes = coordinate_notes(stages[-1]) if align == "none" else ()
    return Outcome(asked, theory=theory_of(found[-1][0], len(trial.recipe.experts)), matching=matching, notes=notes)


def coordinate_notes(stage: Stage) -> tuple[str, ...]:
    """A note if the experts' channels do not correspond: then a repair starts from the wrong goals."""
    one = stage.subjects[0]
    for other in stage.subjects[1:]:
        try:
            check_coordinates(one.expert.model, other.expert.model, one.batches[0], stage.where, (one.name, other.name))
        except MergeError as error:
            return (str(error),)
    return ()


def mean_curve(curves: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean of several curves, a short one held at its last value."""
    longest = max(map(len, curves), default=0)
    held = [[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves if curve]
    return tuple(sum(column) / len(column) for column in zip(*held))


def unrepaired(report: RepairReport) -> tuple[Channels, ...]:
    """A report's channels without those of its repair."""
    return tuple(replace(one, repaired_mean=(), repaired_var=()) for one in report.channels)


def plain_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of a merge without alignment, by the names that they have beside those of one with it."""
    names = {MERGED: PLAIN, REPAIRED: f"{PLAIN}, {REPAIRED}"}
    return {name: scores[kind] for kind, name in names.items() if kind in scores}
