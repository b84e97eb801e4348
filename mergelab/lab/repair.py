"""The verbs of the Repair tab, and what is remembered of them: outcomes, their patches, the folders to take home.

As in lab.py, long verbs are generators: they yield as they go, return their result, and closing one early undoes it.
"""

import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mergelab.align import Alignment, alignment, compared, selftest
from mergelab.align.calibration import bundled_batches
from mergelab.assets import bundled
from mergelab.errors import MergeError, did_you_mean
from mergelab.files.checkpoint import Checkpoint
from mergelab.files.sources import companions
from mergelab.lab.gate import admit
from mergelab.lab.kept import Kept
from mergelab.lab.lab import Lab, Run
from mergelab.lab.own import own_tasks
from mergelab.lab.saved import zipped
from mergelab.lab.state import source_state
from mergelab.merging.merge import merge
from mergelab.model import Running, answer, running
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Recipe
from mergelab.repair import Batch, Patch, applied, fit, joined, sites, statistics
from mergelab.repair.calibration import read_samples
from mergelab.repair.experiment import (
    Stage,
    Subject,
    body_for,
    controlled,
    looked_at,
    mean_curve,
    plain_scores,
    proven,
    repaired,
    samples_each,
    stage_of,
    subject,
    unrepaired,
    with_experts,
)  # fmt: skip
from mergelab.repair.export import weights_sha256, write_body, write_folded, write_sidecar
from mergelab.repair.fit import check_size
from mergelab.repair.head import has_head, head_of
from mergelab.repair.order import mean_weights
from mergelab.repair.outcome import BASE, WITHOUT, Matching, Outcome, Sample, Trial
from mergelab.repair.stories import ALIGN, STORY
from mergelab.scores.questions import Questions
from mergelab.scores.scoring import TaskScore, scored
from mergelab.step import Step, relayed, result
from mergelab.table import csv_text


@dataclass(frozen=True)
class Told:
    """A trial that was run: what it found, the merge itself, and what it takes to write its repairs."""

    trial: Trial
    outcome: Outcome
    run: Run
    patches: dict[str, Patch] = field(default_factory=dict)
    batches: dict[str, list[Batch]] = field(default_factory=dict)
    experts: dict[str, Path] = field(default_factory=dict)  # in the merged model's coordinates
    home: Path | None = None  # the folder of those that were aligned

    @property
    def key(self) -> str:
        """What it is kept under: the folder of its merge."""
        return self.run.folder.parent.name


class RepairLab:
    """What the Repair tab can say, over one Lab."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.told: Kept[Told] = Kept(
            6, lambda told: shutil.rmtree(told.home or "", ignore_errors=True), _bytes_below, lab.limits.disk
        )
        self._patches: Kept[Patch] = Kept(32)

    # The story -----------------------------------------------------------------------------------------------

    def tell(self, trial: Trial, align: str = "none") -> Generator[Step | Outcome, None, Told]:
        """Merge plainly, align, merge again, look, repair, score. Yields Steps, and the Outcome after each task."""
        admit(trial.recipe, self.lab.limits)
        check_size(trial.samples)
        if align not in ALIGN:
            raise MergeError(f"There is no alignment '{align}'. Known are: {', '.join(ALIGN)}.")
        for name in trial.tasks:
            if name not in trial.recipe.names:
                raise MergeError(f"There is no expert '{name}'. {did_you_mean(name, trial.recipe.names)}")
        if trial.target == "mean":
            mean_weights(trial.recipe.experts)  # refuses those that make no mean
        align = trial.recipe.align if align == "none" else align
        trial = replace(trial, recipe=replace(trial.recipe, align="none"))  # first looked at as they are
        trial = replace(trial, samples=samples_each(trial.target, trial.samples, len(trial.recipe.experts)))
        home = Path(tempfile.mkdtemp(prefix="aligned-", dir=self.lab.home))
        try:
            told = yield from self._told(trial, align, home)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        self.told.keep(told.key, told)
        return told

    def _told(self, trial: Trial, align: str, home: Path) -> Generator[Step | Outcome, None, Told]:
        started, recipe, moved = time.monotonic(), trial.recipe, align != "none"
        steps = _Steps(len(recipe.experts), moved)
        own = [self.lab.model_folder(expert.source, recipe.base) for expert in recipe.experts]
        first = []
        for name, expert, folder in zip(recipe.names, recipe.experts, own):
            yield steps(f"the answers of {name}")
            first.append(subject(name, expert.source, running(folder), trial.samples, trial.lines))
        stages, folders, matching = [], own, Matching()
        if moved:
            yield steps("plain average")
            model = yield from self._loaded(recipe, home / "plain", steps)
            stages = [stage_of(model, first, trial)]
            folders, matching = yield from self._aligned(trial, align, first, own, home, steps)
            recipe = _aligned_recipe(trial, matching.kind if matching.kind in ALIGN else align, folders)
        yield steps("merge")
        run = yield from _named(self.lab.merge(recipe, ours=True), steps)
        subjects = [one if a == b else replace(one, expert=running(b)) for one, a, b in zip(first, own, folders)]
        stages.append(stage_of(running(run.folder), subjects, trial))
        outcome = looked_at(trial, align, matching, stages)
        told = Told(trial, outcome, run, experts=dict(zip(trial.recipe.names, folders)), home=home)
        told = yield from self._repaired(told, stages, home, steps)
        return replace(told, outcome=replace(told.outcome, seconds=round(time.monotonic() - started, 1)))

    def _aligned(
        self, trial: Trial, how: str, subjects: list[Subject], own: list[Path], home: Path, steps: "_Steps"
    ) -> Generator[Step, None, tuple[list[Path], Matching]]:
        """Every expert in the base's coordinates, in folders of its own; the base, and one that is it, stays."""
        yield steps("self-test of the symmetries")
        base = self.lab.model_folder(trial.recipe.base, trial.recipe.base)
        reference = Checkpoint(base, trial.recipe.base)
        error = selftest(reference)
        source = trial.recipe.base
        data = [joined([batch for one in subjects for batch in one.batches])]
        data = data if trial.lines or source not in bundled() else bundled_batches(source, base)
        folders, found = [], []
        for i, (one, folder) in enumerate(zip(subjects, own)):
            yield steps(f"aligning {one.name}")
            if folder == base:
                folders.append(folder)
                continue
            expert = Checkpoint(folder, one.name)
            if how == "best":
                found.append(compared(reference, expert, reference.config, data)[0].alignment)
            else:
                found.append(alignment(reference, expert, reference.config, how, data))
            folders.append(_written(found[-1], expert, home / str(i) / folder.name))
        chosen = ", ".join(dict.fromkeys(one.how for one in found)) or how
        return folders, Matching(chosen, mean_curve([one.objective for one in found]), error=error)

    def _repaired(
        self, told: Told, stages: list[Stage], home: Path, steps: "_Steps"
    ) -> Generator[Step | Outcome, None, Told]:
        """Task by task: the plain merge, the one to repair, and the controls."""
        trial, now, outcome = told.trial, stages[-1], told.outcome
        for i, one in enumerate(now.subjects):
            if trial.tasks and one.name not in trial.tasks:
                continue
            yield steps(f"repairing for {one.name}")
            goals, batches = now.goals[i]
            patch, report = repaired(now.model.model, one, goals, batches, now.where, trial)
            scores = dict(report.scores)
            if len(stages) > 1:
                yield steps(f"{one.name}: repair without alignment")
                before = stages[0]
                _, plain = repaired(before.model.model, before.subjects[i], *before.goals[i], before.where, trial)
                outcome = replace(outcome, plain=outcome.plain | {one.name: unrepaired(plain)})
                scores |= plain_scores(plain.scores)
            yield steps(f"{one.name}: controls")
            scores |= yield from self._controls(told, i, now, home, steps)
            body = body_for(now.model.model, one, trial)
            report = proven(replace(report, scores=scores), body, patch, batches)
            told.patches[one.name], told.batches[one.name] = patch, batches
            tested = outcome.tested | ({one.name: one.tests} if one.tests else {})
            outcome = replace(outcome, reports=(*outcome.reports, report), tested=tested)
            yield outcome
        return replace(told, outcome=outcome)

    def _controls(
        self, told: Told, i: int, now: Stage, home: Path, steps: "_Steps"
    ) -> Generator[Step, None, dict[str, float]]:
        """The base, and on request the merge without this expert, before and after the same repair."""
        recipe, one, scores = told.trial.recipe, now.subjects[i], {}
        if one.score is None:
            return scores
        models = {}
        if recipe.base != recipe.experts[i].source:
            models[BASE] = running(self.lab.model_folder(recipe.base, recipe.base))
        others = tuple(expert for j, expert in enumerate(told.run.recipe.experts) if j != i)
        if told.trial.without and others:
            alone = with_experts(told.run.recipe, others)
            models[WITHOUT] = yield from self._loaded(alone, home / f"without-{i}", steps)
        for name, model in models.items():
            body = body_for(model.model, one, told.trial)
            scores |= controlled(name, body, one.score, *now.goals[i], now.where, told.trial.how)
        return scores

    def _loaded(self, recipe: Recipe, out: Path, steps: "_Steps") -> Generator[Step, None, Running]:
        """A merge that is looked at and not kept."""
        work = plan(recipe)
        yield from _named((Step(0, 0, layer.name) for layer in merge(work, out, self.lab._device())), steps)
        model = running(out)
        shutil.rmtree(out)  # it is in memory
        return model

    # One patch, for a prompt or a score ----------------------------------------------------------------------

    def patch(self, run: Run, source: str, lines: tuple[Sample, ...] = ()) -> Patch:
        """TACT of a kept merge for one expert's task, on its bundled prompts or on the given ones. Fitted once."""
        key = f"{run.folder} {source} {source_state(source)} {source_state(run.recipe.base)} {hash(lines)}"

        def made() -> Patch:
            trial = Trial(run.recipe, lines=lines)
            expert = running(self.lab.model_folder(source, run.recipe.base, run.recipe.align))
            one = subject(Path(source).name, source, expert, trial.samples, lines)
            model = self.lab._running(run.folder)
            where = sites(model.model, trial.sites)
            goals = statistics(expert.model, one.batches, where)
            return fit(model.model, goals, one.batches, where, how=trial.how, task=one.name)

        return self._patches.get_or_make(key, made)

    def repaired_answer(self, run: Run, patch: Patch, prompt: str, **how: Any) -> Iterator[str]:
        """The answer of a kept merge that wears a patch, as it grows."""
        self.lab.limits.check_tokens(how.get("tokens", 0))
        with self.lab.using(run.folder) as model, applied(model.model, patch):
            yield from answer(model, prompt, **how)

    def repaired_scores(self, run: Run) -> Iterator[TaskScore]:
        """What a kept merge scores on each task of its bundled experts, repaired for that task."""
        model = self.lab._running(run.folder)
        for expert, task in own_tasks(run.recipe):
            with applied(model.model, self.patch(run, expert.source)):
                (score,) = result(scored(model, [Questions(task.name, task.test)]))
            yield score

    def _kept(self, key: str) -> Told:
        told = self.told.get(key)
        if told is None or not told.run.folder.is_relative_to(self.lab.home) or not told.run.folder.is_dir():
            raise MergeError("That run is not kept any more. Press Run again.")
        return told

    # To take home --------------------------------------------------------------------------------------------

    def written(self, key: str, sidecar: bool) -> Generator[Step, None, list[Path]]:
        """One zip per task with the repair in its weights; or one with the merge and a small file per task."""
        if not key:
            raise MergeError("What you see is an example that was made in advance. Press Run, then take yours home.")
        told = self._kept(key)
        home = told.home / ("sidecars" if sidecar else "folded")
        names = ["sidecars"] if sidecar else [name.replace("/", "-") for name in told.patches]
        paths = [home / f"{told.run.folder.name}-{name}.zip" for name in names]
        if home.is_dir():
            return paths
        scratch = Path(tempfile.mkdtemp(dir=told.home))
        try:
            yield from self._written(told, scratch, sidecar)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        scratch.rename(home)
        self.told.keep(key, told)  # it is heavier now
        return paths

    def _written(self, told: Told, home: Path, sidecar: bool) -> Generator[Step, None, None]:
        """The zips, and nothing beside them."""
        merged, reports = running(told.run.folder), {report.task: report for report in told.outcome.reports}
        if sidecar:
            place = home / f"{told.run.folder.name}-sidecars"
            place.mkdir()
            write_body(place, told.run.folder)
        for i, (name, patch) in enumerate(told.patches.items(), start=1):
            yield Step(i, len(told.patches), name)
            patch = replace(patch, merged=weights_sha256(told.run.folder))
            body, batches = merged.model, told.batches[name]
            if has_head(body):
                body = body_for(body, Subject(name, running(told.experts[name]), batches, None), told.trial)
            if sidecar:
                write_sidecar(place, patch, reports[name], None if body is merged.model else head_of(body))
                continue
            out = home / f"{told.run.folder.name}-{name.replace('/', '-')}"
            write_folded(out, replace(merged, model=body), told.run.folder, patch, joined(batches), reports[name])
            zipped(out)
            shutil.rmtree(out)
        if sidecar:
            zipped(place)
            shutil.rmtree(place)

    def saved(self, outcome: Outcome) -> list[Path]:
        """An outcome as files: all of it as JSON, its scores and its sites as CSV."""
        folder = Path(tempfile.mkdtemp(prefix="outcome-", dir=self.lab.home))
        paths = [folder / f"mergelab-repair{name}" for name in (".json", "-scores.csv", "-sites.csv")]
        paths[0].write_text(outcome.to_json(indent=1), encoding="utf-8")
        for path, table in zip(paths[1:], (outcome.score_table(), outcome.table())):
            path.write_text(csv_text(*table), encoding="utf-8", newline="")
        return paths


@cache
def story() -> Outcome:
    """The outcome that the tab opens with: shipped, so that the first picture waits for nothing."""
    return Outcome.from_json(STORY.read_text(encoding="utf-8"))


def lines_in(text: str, file: str | None = None) -> tuple[Sample, ...]:
    """The samples of a pasted text, a prompt a line, or of an uploaded .txt or .jsonl file."""
    if file:
        return tuple(read_samples(file))
    return tuple((line.strip(), None) for line in (text or "").splitlines() if line.strip())


def _bytes_below(told: Told) -> float:
    """What a trial's folder holds."""
    return sum(path.stat().st_size for path in told.home.rglob("*") if path.is_file()) if told.home else 0


class _Steps:
    """Counts what is done, and knows about how much there is."""

    def __init__(self, experts: int, aligned: bool):
        self.done, self.now = 0, ""
        self.total = (3 if not aligned else 5) * experts + (1 if not aligned else 3)

    def __call__(self, name: str) -> Step:
        self.done, self.now = min(self.done + 1, self.total), name
        return Step(self.done, self.total, name)

    def within(self, name: str) -> Step:
        """The same step, a little further on."""
        return Step(self.done, self.total, f"{self.now}: {name}")


def _named(job: Generator[Step, None, Any], steps: _Steps) -> Generator[Step, None, Any]:
    """A job within a job: its steps keep the place of the outer one, where that counts."""
    return relayed(job, lambda step: steps.within(step.name))


def _aligned_recipe(trial: Trial, how: str, folders: list[Path]) -> Recipe:
    """What is merged: the experts by name and how they are aligned, where that says it all; else aligned folders."""
    recipe = trial.recipe
    if how in ALIGN and (how == "weights" or (recipe.base in bundled() and not trial.lines)):
        return replace(recipe, align=how)
    return replace(recipe, experts=tuple(replace(e, source=str(f)) for e, f in zip(recipe.experts, folders)))


def _written(found: Alignment, expert: Checkpoint, place: Path) -> Path:
    """An aligned expert as an ordinary folder."""
    place.mkdir(parents=True)
    aligned = found.aligned(expert)
    save_file(
        {name: tensor.contiguous() for name, tensor in aligned.items()}, place / "model.safetensors", {"format": "pt"}
    )
    for path in companions(expert.folder):
        shutil.copyfile(path, place / path.name)
    return place
