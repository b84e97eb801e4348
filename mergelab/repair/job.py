"""Repairs a merged folder for its tasks, from folders to folders: load, answer, measure, fit, score, write.

One expert at a time is in memory, beside the first one, the merged model and, for the controls, the base.
"""

import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from mergelab.errors import MergeError, did_you_mean
from mergelab.files.adapter import is_adapter
from mergelab.files.sources import folder_of
from mergelab.merging.merge import merge
from mergelab.merging.output import new_folder
from mergelab.model import Running, running
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.repair import Patch, Site, Statistics, mean_goals, repair, statistics
from mergelab.repair import sites as sites_of
from mergelab.repair.calibration import AT_ONCE, check_vocabulary
from mergelab.repair.control import check_coordinates
from mergelab.repair.experiment import Score, controlled, samples_each, scored, subject, with_experts
from mergelab.repair.export import takes_shifts, weights_sha256, write_body, write_folded, write_sidecar
from mergelab.repair.fit import cut
from mergelab.repair.head import has_head, head_of, wearing, with_head
from mergelab.repair.order import AUTO, TENSORS, Order, Wanted, check_order, mean_weights, read_data
from mergelab.repair.outcome import BASE, WITHOUT
from mergelab.repair.patch import saved_head
from mergelab.repair.statistics import Batch, tried
from mergelab.report import RepairReport
from mergelab.tasks import own_score


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
    check_order(order)
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
            scores = scored(task.score, task.expert_score, body, patch) if task.score else {}
            for name, model in _controls(order, task, base, Path(scratch)) if task.score else ():
                yield f"scoring {task.name}: {name}"
                scores |= controlled(name, headed(model), task.score, task.goals, task.batches, where, order.how)
            report = replace(report, scores=scores)
            if order.sidecar:
                reports.append(write_sidecar(place, patch, report, head_of(body)))
            else:
                done = replace(merged, model=body)
                reports.append(write_folded(place / task.name, done, order.merged, patch, task.batches[0], report))
        if order.sidecar:
            write_body(place, order.merged)
    return tuple(reports)


def _mode(order: Order, model: nn.Module) -> str:
    if order.mode != AUTO:
        return order.mode
    return "affine" if order.sidecar or takes_shifts(model) else "rms"


def worn(folder: Path, task: str) -> tuple[Running, Patch]:
    """The body in a folder written with sidecars, and one task's patch, to be worn by `applied(body.model, patch)`.

    A classifier has the task's own head.
    """
    known = {path.stem.removeprefix("repair-"): path for path in folder.glob("repair-*.safetensors")}
    if task not in known:
        raise MergeError(f"'{folder.name}' holds no repair for '{task}'. {did_you_mean(task, known)}".rstrip())
    body, head = running(folder), saved_head(known[task])
    body = replace(body, model=wearing(body.model, head)) if head else body
    return body, Patch.load(known[task], weights_sha256(folder))


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


def _measured(
    order: Order, merged: Running, where: tuple[Site, ...], scratch: Path
) -> Generator[str, None, list[_Task]]:
    """Each expert in turn: its answers and its statistics; for the mean, those of all experts on all tasks' data."""
    tasks, first, most = [], None, samples_each(order.target, order.samples, len(order.wanted))
    for wanted in order.wanted:
        yield f"measuring {wanted.expert}"
        folder = _whole(wanted.expert, order, scratch)
        expert = running(folder)
        check_vocabulary(merged, expert)
        if order.plain and expert.tokenizer is not None:
            expert.tokenizer.chat_template = None
        score, batches = _data(wanted, expert, most)
        goals = statistics(expert.model, batches, where, drop_first=order.how.drop_first)
        if first is None:
            first = expert
        elif not order.unaligned and not order.aligned:
            names = order.wanted[0].name, wanted.name
            check_coordinates(first.model, expert.model, tasks[0].batches[0], where, names)
        found = score(expert.model) if score else None
        tasks.append(_Task(wanted.name, wanted.expert, folder, batches, goals, score, found))
    if order.target == "task":
        return tasks
    yield "measuring all experts on all data"
    union = [batch for task in tasks for batch in task.batches]
    models = (running(task.folder).model for task in tasks)
    found = [statistics(model, union, where, drop_first=order.how.drop_first) for model in models]
    goals = mean_goals(found, mean_weights(order.experts))
    return [replace(task, batches=union, goals=goals) for task in tasks]


def _data(wanted: Wanted, expert: Running, most: int) -> tuple[Score | None, list[Batch]]:
    """How to score a task, if that is known, and what to calibrate on."""
    given = read_data(wanted.data) if wanted.data is not None else ()
    if wanted.data is not None and wanted.data.endswith(TENSORS):
        (whole,) = given
        batches = cut({key: tensor[:most] for key, tensor in whole.items()}, AT_ONCE)
        tried(expert.model, batches[0])
        return own_score(wanted.expert, expert.tokenizer), batches
    found = subject(wanted.name, wanted.expert, expert, most, given)
    return found.score, found.batches


def _base(order: Order, tasks: list[_Task]) -> nn.Module | None:
    """The unmerged base, where it is known and can be scored."""
    known = order.recipe is not None and any(task.score for task in tasks)
    return running(folder_of(order.recipe.base)).model if known else None


def _controls(
    order: Order, task: _Task, base: nn.Module | None, scratch: Path
) -> Generator[tuple[str, nn.Module], None, None]:
    """The models that get the same repair for comparison: the base and, on request, the merge without the expert."""
    if base is not None and task.source != order.recipe.base:
        yield BASE, base
    others = tuple(expert for expert in order.recipe.experts if expert.source != task.source) if order.without else ()
    if others:
        yield WITHOUT, running(_made(with_experts(order.recipe, others), scratch)).model


def _whole(source: str, order: Order, scratch: Path) -> Path:
    """A source as the folder of a whole model in the merged one's coordinates; an adapter is laid on the recipe's base.

    (The average of one aligned expert is that expert, aligned.)
    """
    alone = "+" not in source or Path(source).is_dir()
    folder = folder_of(source) if alone else None
    whole = folder is not None and (folder / "config.json").is_file() and not is_adapter(folder)
    if whole and not order.aligned:
        return folder
    base = order.recipe.base if order.recipe else source.partition("+")[0]
    if alone and order.recipe is None:
        raise MergeError(f"'{source}' is an adapter, and its base is not known. Write BASE+ADAPTER, or name a recipe.")
    align = order.recipe.align if order.recipe else "none"
    return _made(Recipe(base, (Expert(source),), "linear", align=align), scratch)


def _made(recipe: Recipe, scratch: Path) -> Path:
    out = scratch / recipe.hash
    if not out.is_dir():
        for _ in merge(plan(recipe), out):
            pass
    return out
