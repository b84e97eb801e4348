"""Repairs a merged folder for its tasks, from folders to folders: load, answer, measure, fit, score, write.

One expert at a time is in memory, beside the first one, the merged model and, for the controls, the base.
"""

import re
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from mergelab.errors import MergeError, did_you_mean
from mergelab.files.sources import folder_of
from mergelab.merging.merge import merge
from mergelab.merging.output import new_folder
from mergelab.model import Running, running
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.repair import FEWEST, MOST, How, Patch, Site, Statistics, applied, mean_goals, repair, statistics
from mergelab.repair import sites as sites_of
from mergelab.repair.calibration import batches_of, check_vocabulary, read_samples, read_tensors
from mergelab.repair.control import check_coordinates, repaired_score
from mergelab.repair.export import takes_shifts, weights_sha256, write_body, write_folded, write_sidecar
from mergelab.repair.head import has_head, with_head
from mergelab.repair.statistics import Batch
from mergelab.report import RepairReport
from mergelab.tasks import exact_match, own_pictures, own_task, right_labels

Score = Callable[[nn.Module], float]
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Wanted:
    """One task to repair for: its name, its expert's source, and its calibration file (none: the bundled pairs)."""

    name: str
    expert: str
    data: str | None = None


@dataclass(frozen=True)
class Order:
    """All that is asked of one run. merged: the folder; recipe: what it was made of, if that is known.

    mode: that of `how`, or auto: affine where it can be written, else rms. target: task or mean. sidecar: one body,
    and a file per task. without: also score the merge without each expert. unaligned: go on although the experts'
    channels do not correspond. plain: prompts are plain text, though the expert has a chat template.
    """

    merged: Path
    wanted: tuple[Wanted, ...]
    recipe: Recipe | None = None
    sites: str = "foldable"
    mode: str = "auto"
    target: str = "task"
    how: How = field(default_factory=How)
    samples: int = 32
    sidecar: bool = False
    without: bool = False
    unaligned: bool = False
    plain: bool = False


@dataclass(frozen=True)
class _Task:
    """One task before its repair: where its expert lies, its data and its goals; how to score it, if that is known."""

    name: str
    source: str
    folder: Path
    batches: list[Batch]
    goals: Statistics
    score: Score | None
    expert_score: float | None


def repairs(order: Order, out: str | Path) -> Generator[str, None, tuple[RepairReport, ...]]:
    """Repair, and write everything to the new folder `out`, or nothing. Yields what it is at; returns the reports."""
    _check(order)
    reports = []
    with tempfile.TemporaryDirectory(prefix="mergelab-repair-") as scratch, new_folder(out) as place:
        yield f"loading {order.merged.name}"
        merged, sha256 = running(order.merged), weights_sha256(order.merged)
        where = sites_of(merged.model, order.sites)
        order = replace(order, how=replace(order.how, mode=_mode(order, merged.model)))
        tasks = yield from _measured(order, merged, where, Path(scratch))
        base = _base(order, tasks)
        for task in tasks:
            yield f"repairing for {task.name}"
            headed = partial(with_head, expert=running(task.folder).model) if has_head(merged.model) else lambda m: m
            body = headed(merged.model)
            about = {"task": task.name, "target": order.target, "merged": sha256}
            patch, report = repair(body, task.goals, task.batches, where, order.how, **about)
            scores = _scores(task, body, patch)
            for name, model in _controls(order, task, base, Path(scratch)) if task.score else ():
                yield f"scoring {task.name}: {name}"
                model = headed(model)
                again = repaired_score(model, task.goals, task.batches, where, task.score, order.how)
                scores |= {name: task.score(model), f"{name}, repaired": again}
            report = replace(report, scores=scores)
            if order.sidecar:
                reports.append(write_sidecar(place, patch, report))
            else:
                done = replace(merged, model=body)
                reports.append(write_folded(place / task.name, done, order.merged, patch, task.batches[0], report))
        if order.sidecar:
            write_body(place, order.merged)
    return tuple(reports)


def _mode(order: Order, model: nn.Module) -> str:
    if order.mode != "auto":
        return order.mode
    return "affine" if order.sidecar or takes_shifts(model) else "rms"


def worn(folder: Path, task: str) -> tuple[Running, Patch]:
    """The body in a folder written with sidecars, and one task's patch, to be worn by `applied(body.model, patch)`."""
    known = {path.stem.removeprefix("repair-"): path for path in folder.glob("repair-*.safetensors")}
    if task not in known:
        raise MergeError(f"'{folder.name}' holds no repair for '{task}'. {did_you_mean(task, known)}".rstrip())
    return running(folder), Patch.load(known[task], weights_sha256(folder))


def repair_table(reports: Sequence[RepairReport]) -> list[list[str]]:
    """Header and a row per task: the variance ratio before and after, and what everyone scores."""
    names = tuple(dict.fromkeys(name for report in reports for name in report.scores))
    rows = [["task", "mode", "samples", "ratio before", "after", "clamped", *names]]
    for report in reports:
        before, after = report.ratios
        scores = [f"{report.scores[name]:.1%}" if name in report.scores else "" for name in names]
        counts = [str(report.samples), f"{before:.3f}", f"{after:.3f}", str(report.clamped)]
        rows.append([report.task, report.mode, *counts, *scores])
    return rows


def _check(order: Order) -> None:
    names = [task.name for task in order.wanted]
    if not names:
        raise MergeError("Name at least one task to repair for: --task NAME=EXPERT.")
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            raise MergeError(f"'{name}' cannot name a task: use letters, digits, '-', '_' and '.', each name once.")
    if order.target not in ("task", "mean"):
        raise MergeError(f"The target is 'task' or 'mean', not '{order.target}'.")
    if not FEWEST <= order.samples <= MOST:
        raise MergeError(f"Take {FEWEST} to {MOST} calibration samples, not {order.samples}. 32 are plenty.")
    if order.without and order.recipe is None:
        raise MergeError("The merge without an expert can only be made where the recipe is known. Name the recipe.")
    for task in order.wanted:
        if task.data is None and own_task(task.expert) is None and own_pictures(task.expert) is None:
            raise MergeError(f"There is no calibration data for '{task.name}'. Give a file of prompts: --data FILE.")


def _measured(
    order: Order, merged: Running, where: tuple[Site, ...], scratch: Path
) -> Generator[str, None, list[_Task]]:
    """Each expert in turn: its answers and its statistics; for the mean, those of all experts on all tasks' data."""
    tasks, first = [], None
    for wanted in order.wanted:
        yield f"measuring {wanted.expert}"
        folder = _whole(wanted.expert, order, scratch)
        expert = running(folder)
        check_vocabulary(merged, expert)
        if order.plain and expert.tokenizer is not None:
            expert.tokenizer.chat_template = None
        batches = _batches(wanted, expert, _samples(order))
        goals = statistics(expert.model, batches, where, drop_first=order.how.drop_first)
        if first is None:
            first = expert
        elif not order.unaligned:
            names = order.wanted[0].name, wanted.name
            check_coordinates(first.model, expert.model, tasks[0].batches[0], where, names)
        score = _score(wanted.expert, merged)
        found = score(expert.model) if score else None
        tasks.append(_Task(wanted.name, wanted.expert, folder, batches, goals, score, found))
    if order.target == "task":
        return tasks
    yield "measuring all experts on all data"
    union = [batch for task in tasks for batch in task.batches]
    models = (running(task.folder).model for task in tasks)
    goals = mean_goals([statistics(model, union, where, drop_first=order.how.drop_first) for model in models])
    return [replace(task, batches=union, goals=goals) for task in tasks]


def _samples(order: Order) -> int:
    """Samples a task: for the mean, those of all tasks go into one pass."""
    return order.samples if order.target == "task" else min(order.samples, max(1, MOST // len(order.wanted)))


def _batches(wanted: Wanted, expert: Running, most: int) -> list[Batch]:
    if wanted.data is None and (pictures := own_pictures(wanted.expert)):
        return [{"pixel_values": pictures.calibration.images[:most]}]
    if wanted.data is None:
        return batches_of(expert, own_task(wanted.expert).calibration[:most])
    if wanted.data.endswith(".safetensors"):
        return [{key: tensor[:most] for key, tensor in batch.items()} for batch in read_tensors(wanted.data)]
    return batches_of(expert, read_samples(wanted.data)[:most])


def _score(source: str, merged: Running) -> Score | None:
    """The exact match on a bundled expert's held-out prompts, or its share of right labels, 0…1."""
    own, pictures = own_task(source), own_pictures(source)
    if pictures is not None:
        return lambda model: float(right_labels(model, pictures.test).float().mean())
    if own is None or merged.tokenizer is None:
        return None
    return lambda model: float(exact_match(model, merged.tokenizer, own.test).float().mean())


def _scores(task: _Task, body: nn.Module, patch: Patch) -> dict[str, float]:
    """What the expert, the merge and its repair score on a bundled task; nothing for tasks of the user's own."""
    if task.score is None:
        return {}
    with applied(body, patch):
        repaired = task.score(body)
    return {"expert": task.expert_score, "merged": task.score(body), "repaired": repaired}


def _base(order: Order, tasks: list[_Task]) -> nn.Module | None:
    """The unmerged base, where it is known and can be scored."""
    known = order.recipe is not None and any(task.score for task in tasks)
    return running(folder_of(order.recipe.base)).model if known else None


def _controls(
    order: Order, task: _Task, base: nn.Module | None, scratch: Path
) -> Generator[tuple[str, nn.Module], None, None]:
    """The models that get the same repair for comparison: the base and, on request, the merge without the expert."""
    if base is not None:
        yield "base", base
    others = tuple(expert for expert in order.recipe.experts if expert.source != task.source) if order.without else ()
    if others:
        yield "without the expert", running(_made(replace(order.recipe, experts=others), scratch)).model


def _whole(source: str, order: Order, scratch: Path) -> Path:
    """A source as the folder of a whole model; an adapter is first laid on the recipe's base."""
    alone = "+" not in source or Path(source).is_dir()
    folder = folder_of(source) if alone else None
    if folder is not None and (folder / "config.json").is_file():
        return folder
    base = order.recipe.base if order.recipe else source.partition("+")[0]
    if alone and order.recipe is None:
        raise MergeError(f"'{source}' is an adapter, and its base is not known. Write BASE+ADAPTER, or name a recipe.")
    return _made(Recipe(base, (Expert(source),), "linear"), scratch)


def _made(recipe: Recipe, scratch: Path) -> Path:
    out = scratch / recipe.hash
    if not out.is_dir():
        for _ in merge(plan(recipe), out):
            pass
    return out
