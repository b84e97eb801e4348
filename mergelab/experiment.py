"""One merge, looked at and repaired for each of its tasks: variance, correlations, patches, scores and controls.

Works on models in memory, and reports what it is at as it goes. It does not know where they come from, nor what is
remembered of it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.maths.moments import variance_kept
from mergelab.model import Running
from mergelab.recipe import Recipe
from mergelab.repair import How, Patch, Site, Statistics, applied, fit, joined, mean_goals, repair, statistics
from mergelab.repair.calibration import Sample, batches_of
from mergelab.repair.export import folded
from mergelab.repair.head import with_head
from mergelab.repair.statistics import Batch, run, visited
from mergelab.report import Channels, RepairReport
from mergelab.tasks import PictureTask, Task, exact_match, own_pictures, own_task, right_labels

Score = Callable[[nn.Module], float]
PLAIN, MERGED, REPAIRED, EXPERT, BASE, WITHOUT = (
    "plain average",
    "merged",
    "repaired",
    "expert",
    "base",
    "without the expert",
)
_ROWS = 4096  # of an activation: enough to see a correlation
_HISTOGRAM = 2000  # correlations that are kept for the picture


@dataclass(frozen=True)
class Trial:
    """What to try. recipe: what to merge, and whether its experts are aligned first; the rest: how to repair it.

    samples: calibration samples a task. own_heads: a classifier keeps each expert's own last layer. without: score also
    the merge without the task's expert. lines: the user's own samples, in place of the bundled ones.
    """

    recipe: Recipe
    target: str = "task"
    mode: str = "affine"
    sites: str = "foldable"
    samples: int = 32
    clamp: float = 100.0
    own_heads: bool = True
    without: bool = False
    lines: tuple[Sample, ...] = ()

    @property
    def how(self) -> How:
        return How(self.mode, self.clamp)

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this trial; equal trials have equal ones."""
        plain = json.dumps([self.recipe.hash, *(v for k, v in asdict(self).items() if k != "recipe")], default=str)
        return hashlib.sha256(plain.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Subject:
    """One task of a trial: the expert that knows it, in the merged model's coordinates, its data, and how to score."""

    name: str
    expert: Running
    batches: list[Batch]
    score: Score | None
    tests: int = 0  # that it is scored on


@dataclass(frozen=True)
class Matching:
    """How the experts were aligned. objective: what was made large, sweep by sweep. error: of the self-test, which puts
    neurons in a random order and compares outputs. before, after: correlations of channels with the same number."""

    kind: str = "none"
    objective: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a trial found. plain: the merge without alignment, task -> channels. theory: the share of its variance that
    an average keeps at each site, by the correlation of the experts there."""

    trial: Mapping[str, Any]
    reports: tuple[RepairReport, ...] = ()
    plain: Mapping[str, tuple[Channels, ...]] = field(default_factory=dict)
    theory: tuple[float, ...] = ()
    matching: Matching = field(default_factory=Matching)
    tested: Mapping[str, int] = field(default_factory=dict)  # task -> how many prompts or pictures it was scored on
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: one row per task and site, with the variance ratios and the offset of the means."""
        rows = []
        for report in self.reports:
            plain = {one.site: one.ratio() for one in self.plain.get(report.task, ())}
            for i, one in enumerate(report.channels):
                offsets = one.offset(), one.offset(REPAIRED) if one.repaired_var else ""
                ratios = plain.get(one.site, ""), one.ratio(), one.ratio(REPAIRED) if one.repaired_var else ""
                rows.append([report.task, one.site, *ratios, *offsets, self.theory[i] if self.theory else ""])
        heads = ["ratio, plain", "ratio, merged", "ratio, repaired", "offset, merged", "offset, repaired"]
        return ["task", "site", *heads, "(1+(N-1)ρ)/N"], rows

    def score_table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: one row per task, a column per score."""
        kinds = list(dict.fromkeys(kind for report in self.reports for kind in report.scores))
        return ["task", *kinds], [[r.task, *(r.scores.get(kind, "") for kind in kinds)] for r in self.reports]

    def to_json(self, indent: int | None = None) -> str:
        """All of it as JSON text."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """The outcome that `to_json` wrote."""
        data = json.loads(text)
        reports = tuple(RepairReport.from_json(json.dumps(report)) for report in data.pop("reports"))
        plain = {task: tuple(Channels(**_tuples(one)) for one in found) for task, found in data.pop("plain").items()}
        matching = Matching(**_tuples(data.pop("matching")))
        return cls(reports=reports, plain=plain, matching=matching, **_tuples(data))


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


# One task ---------------------------------------------------------------------------------------------------


def subject(name: str, source: str, expert: Running, trial: Trial) -> Subject:
    """A task by its expert: bundled pictures or prompts, or the trial's own lines. MergeError if there are none."""
    most, pictures, task = trial.samples, own_pictures(source), own_task(source)
    if pictures and not trial.lines:
        some = pictures.calibration.images[:most]
        return Subject(name, expert, [{"pixel_values": some}], _reader(pictures), len(pictures.test.labels))
    samples = trial.lines or (task.calibration if task else ())
    if not samples:
        raise MergeError(
            f"There is no calibration data for '{name}': only bundled experts bring their own. Paste at least 4 prompts "
            "of its task, or upload a file of them."
        )
    batches = batches_of(expert, samples[:most])
    if task is None:
        return Subject(name, expert, batches, None)
    return Subject(name, expert, batches, _matcher(expert, task), len(task.test))


def _reader(pictures: PictureTask) -> Score:
    return lambda model: _share(right_labels(model, pictures.test))


def _matcher(expert: Running, task: Task) -> Score:
    return lambda model: _share(exact_match(model, expert.tokenizer, task.test))


def _share(right: Tensor) -> float:
    return round(float(right.float().mean()), 4)


def body_for(model: nn.Module, subject: Subject, trial: Trial) -> nn.Module:
    """The model that this task sees: a classifier with the expert's own head, if the trial wants that."""
    return with_head(model, subject.expert.model) if trial.own_heads and subject.expert.tokenizer is None else model


def goals_of(subjects: Sequence[Subject], where: Sequence[Site], trial: Trial) -> list[tuple[Statistics, list[Batch]]]:
    """For each task the moments to reach, and the samples to reach them on."""
    if trial.target == "task":
        return [(statistics(one.expert.model, one.batches, where), one.batches) for one in subjects]
    union = [joined([batch for one in subjects for batch in one.batches])]
    mean = mean_goals([statistics(one.expert.model, union, where) for one in subjects])
    return [(mean, union)] * len(subjects)


def repaired(
    model: nn.Module, one: Subject, goals: Statistics, batches: list[Batch], where: Sequence[Site], trial: Trial
) -> tuple[Patch, RepairReport]:
    """One task's repair of a merged model: its patch, the channels before and after, and the scores of all three."""
    body = body_for(model, one, trial)
    patch, report = repair(body, goals, batches, where, trial.how, task=one.name, target=trial.target)
    if not one.score:
        return patch, report
    scores = {EXPERT: one.score(one.expert.model), MERGED: one.score(body)}
    with applied(body, patch):
        scores[REPAIRED] = one.score(body)
    return patch, replace(report, scores=scores)


def proven(report: RepairReport, body: nn.Module, patch: Patch, batches: list[Batch]) -> RepairReport:
    """The report, with what the repair becomes as weights: its largest error, the sites without a place, or why not."""
    try:
        done = folded(body, patch, {key: tensor[:8] for key, tensor in joined(batches).items()})
    except MergeError as error:
        return replace(report, notes=(*report.notes, str(error)))
    return replace(report, unfolded=done.unfolded, difference=done.difference)


def control(
    model: nn.Module, one: Subject, goals: Statistics, batches: list[Batch], where: Sequence[Site], trial: Trial
) -> tuple[float, float]:
    """What another model scores on this task with the same head, before and after the same repair."""
    assert one.score
    body = body_for(model, one, trial)
    patch = fit(body, goals, batches, where, how=trial.how)
    with applied(body, patch):
        after = one.score(body)
    return one.score(body), after


# Two experts ------------------------------------------------------------------------------------------------


def correlations(one: nn.Module, other: nn.Module, batch: Batch, where: Sequence[Site]) -> dict[str, Tensor]:
    """How well channels with the same number agree in two models, site by site, on the same samples. (channel,)"""
    seen = [_activations(model, batch, where) for model in (one, other)]
    return {name: _correlation(seen[0][name], seen[1][name]) for name in seen[0] if name in seen[1]}


def _activations(model: nn.Module, batch: Batch, where: Sequence[Site]) -> dict[str, Tensor]:
    """What passes each site, padding left out: site -> (row, channel), float64."""
    kept: dict[str, Tensor] = {}

    def keep(site: Site, values: Tensor, mask: Tensor | None) -> None:
        last = values.movedim(site.dim, -1)
        rows = last.reshape(-1, last.shape[-1]) if mask is None else last[mask].reshape(-1, last.shape[-1])
        kept[site.name] = rows[:: max(1, len(rows) // _ROWS)].double().cpu()

    with visited(model, where, keep):
        run(model, batch)
    return kept


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
