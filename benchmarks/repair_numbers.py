"""What repair gives the merges of the bundled experts, with its controls, as Markdown tables.

`python benchmarks/repair_numbers.py` measures everything anew, in minutes on two cores: mean exact match over the
tasks of the merged experts, 200 held-out prompts a task, 32 calibration samples a task.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from mergelab.assets import ASSETS
from mergelab.merging.merge import merge
from mergelab.model import Running, running
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.repair import How, Statistics, applied, fit, joined, mean_goals, sites, statistics
from mergelab.repair.calibration import batches_of
from mergelab.tasks import exact_match, tasks

TASKS = tasks()
MERGES = (
    ("Average of 2", 2, "linear", {}),
    ("Average of 4", 4, "linear", {}),
    ("Average of 8", 8, "linear", {}),
    ("STAR of 8, η = 50", 8, "star", {"eta": 50}),
    ("DRM-H of 8, drop 0.5", 8, "drm_h", {"drop": 0.5}),
)
WAYS = (
    ("by default: 32 samples, affine, foldable sites", {}),
    ("4 samples", {"samples": 4}),
    ("8 samples", {"samples": 8}),
    ("64 samples", {"samples": 64}),
    ("prompts without answers", {"answers": False}),
    ("scale only (rms)", {"how": How("rms")}),
    ("shift only", {"how": How("shift")}),
    ("first positions left out", {"how": How(drop_first=True)}),
    ("branch outputs", {"preset": "branches"}),
    ("norms", {"preset": "norms"}),
    ("the authors' sites", {"preset": "official"}),
    ("REPAIR: one goal for all tasks, the mean over experts", {"pooled": True}),
)


class Measured:
    """The bundled experts in memory, and their data."""

    def __init__(self) -> None:
        self.experts = {name: running(ASSETS / "numbers" / name) for name in TASKS}
        self.base = running(ASSETS / "numbers" / "base")

    def batches(self, name: str, samples: int, answers: bool) -> list[dict]:
        """A task's calibration data, with the answers or without."""
        pairs = TASKS[name].calibration[:samples]
        if answers:
            return batches_of(self.experts[name], pairs)
        given = self.base.tokenizer([prompt for prompt, _ in pairs], padding=True, return_tensors="pt")
        return [{key: given[key] for key in ("input_ids", "attention_mask")}]

    def repaired(
        self, merged: Running, names: Sequence[str], *, samples=32, answers=True, preset="foldable", pooled=False,
        how: How | None = None,
    ) -> float:  # fmt: skip
        """The mean exact match of a model over its tasks, each under its own repair."""
        how, where = how or How(), sites(merged.model, preset)
        data = {name: self.batches(name, samples, answers) for name in names}
        goals = {name: self._goals(name, data[name], where, how) for name in names}
        if pooled:
            union = [joined([batch for name in names for batch in data[name]])]
            mean = mean_goals([self._goals(name, union, where, how) for name in names])
            data, goals = dict.fromkeys(names, union), dict.fromkeys(names, mean)
        shares = []
        for name in names:
            with applied(merged.model, fit(merged.model, goals[name], data[name], where, how=how)):
                shares.append(score(merged, name))
        return fmean(shares)

    def _goals(self, name: str, batches: list[dict], where: tuple, how: How) -> Statistics:
        return statistics(self.experts[name].model, batches, where, drop_first=how.drop_first)


def score(run: Running, name: str) -> float:
    """Exact match on a task's held-out prompts."""
    return float(exact_match(run.model, run.tokenizer, TASKS[name].test).float().mean())


def made(folder: Path, recipe: Recipe) -> Running:
    """A merge, in memory."""
    out = folder / recipe.hash
    for _ in merge(plan(recipe), out) if not out.is_dir() else ():
        pass
    return running(out)


def main() -> None:
    lab, names = Measured(), tuple(TASKS)
    with tempfile.TemporaryDirectory() as folder:
        print("| merge | base | base, repaired | merged | merged, repaired | one expert left out | … repaired |")
        print("|---|" + "---|" * 6)
        for title, count, method, settings in MERGES:
            some = names[:count]
            recipe = Recipe("numbers/base", tuple(Expert(f"numbers/{name}") for name in some), method, settings)
            merged = made(Path(folder), recipe)
            row = [fmean(score(lab.base, n) for n in some), lab.repaired(lab.base, some)]
            row += [fmean(score(merged, n) for n in some), lab.repaired(merged, some)]
            row += left_out(lab, recipe, folder) if method == "linear" else ()  # minutes a row
            cells = [f"{share:.1%}" for share in row] + [""] * (6 - len(row))
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
        average = made(Path(folder), Recipe("numbers/base", tuple(Expert(f"numbers/{n}") for n in names), "linear"))
        print("\n| average of 8, repaired | exact match |\n|---|---|")
        for title, way in WAYS:
            print(f"| {title} | {lab.repaired(average, names, **way):.1%} |", flush=True)


def left_out(lab: Measured, recipe: Recipe, folder: str) -> tuple[float, float]:
    """The mean over tasks of a merge that lacks the task's own expert: as it is, and repaired."""
    before, after = [], []
    for expert in recipe.experts:
        name = expert.source.removeprefix("numbers/")
        others = tuple(other for other in recipe.experts if other != expert)
        run = made(Path(folder), replace(recipe, experts=others))
        before.append(score(run, name))
        after.append(lab.repaired(run, [name]))
    return fmean(before), fmean(after)


if __name__ == "__main__":
    main()
