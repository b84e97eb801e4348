"""The verbs that the page may say, and what is remembered between two clicks: analyses, merges, loaded models.

Long verbs are generators: they yield as they go, return their result, and closing one early undoes it.
"""

import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mergelab.errors import MergeError
from mergelab.files.adapter import is_adapter
from mergelab.files.checkpoint import Checkpoint
from mergelab.files.push import push
from mergelab.files.sources import ask_as_anybody, folder_of
from mergelab.lab import lent
from mergelab.lab.gallery import FIRST, RECIPES, examples, shipped_analysis, with_all_settings
from mergelab.lab.gate import admit, admit_source, bound_downloads
from mergelab.lab.kept import Kept
from mergelab.lab.own import own_questions, own_tasks, questions_for
from mergelab.lab.state import folder_state, recipe_state, source_state
from mergelab.lab.visits import Visits, own_folder
from mergelab.limits import Limits
from mergelab.merging.devices import device_named
from mergelab.merging.merge import merge
from mergelab.merging.store import shared_store
from mergelab.method import method_named
from mergelab.model import Running, answer, running
from mergelab.planning.check import Check, check
from mergelab.planning.plan import Plan, plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.report import Report
from mergelab.scores.compare import Comparison, compared
from mergelab.scores.questions import Questions
from mergelab.scores.scoreboard import BASE, MERGED, Board, scoreboard
from mergelab.scores.scoring import TaskScore, scored
from mergelab.scores.sweep import sweep
from mergelab.scores.sweep_report import SweepReport
from mergelab.step import Step

START = RECIPES / f"{FIRST}.yaml"  # what the page opens with
IDLE = 6 * 3600.0  # seconds after which a visitor who does nothing is taken to have left


@dataclass(frozen=True)
class Run:
    """A merge that was made: its recipe, its report and the folder that holds it. state: of what it was made from."""

    recipe: Recipe
    report: Report
    folder: Path
    state: str = ""

    @property
    def sha256(self) -> str:
        """One hash for the weights: the file's own, or that of the list of the shards' hashes."""
        digests = list(self.report.sha256.values())
        return digests[0] if len(digests) == 1 else "+".join(digest[:8] for digest in digests)

    @property
    def is_whole(self) -> bool:
        """Whether its weights are still there."""
        return all((self.folder / file).is_file() for file in self.report.sha256)


class Lab:
    """One process's laboratory. runs: the folder for what is made; by default a temporary one.

    visitor: says who is asking just now ('' for a person alone). What a visitor makes is theirs alone, and lies in a
    folder of their own; analyses, models and scores are kept for everyone. limits: what one may ask for.
    """

    def __init__(self, runs: Path | None = None, device: str = "auto", limits: Limits | None = None):
        self.folder, lock = (runs, None) if runs else own_folder()
        if runs is None:
            weakref.finalize(self, _removed, self.folder, lock)
        self.device, self.limits = device, limits or Limits()
        self.visitor: Callable[[], str] = str
        self.visits = Visits(self.folder, self._forget, idle=IDLE if self.limits.public else None)
        self.analyses: Kept[Report] = Kept(512, weigh=_size_of, heaviest=self.limits.max_kept_mb << 20)
        most = 12 if self.limits.disk is None else 1000
        self.runs: Kept[Run] = Kept(
            most, lambda run: _remove_parent(run.folder), lambda run: 2 * _bytes_in(run.folder), self.limits.disk
        )
        self._models: Kept[Running] = Kept(self.limits.max_models)
        self._scores: Kept[TaskScore] = Kept(512)
        self.comparisons: Kept[Comparison] = Kept(8)
        self._written = self.folder / secrets.token_hex(16)
        self._adapters: Kept[Path] = Kept(64, _remove_parent, _bytes_in, self.limits.disk)

    @property
    def home(self) -> Path:
        """The folder of whoever is asking."""
        return self.visits.home(visitor) if (visitor := self.visitor()) else self.folder

    def opens_to_others(self) -> None:
        """In public mode visitors see of the Hub what anybody sees, and not what this machine's own login may."""
        if self.limits.public:
            ask_as_anybody()

    @property
    def models_loaded(self) -> int:
        """How many models are kept in memory."""
        return len(self._models)

    @property
    def bytes_kept(self) -> int:
        """The bytes of memory that analyses and factors take."""
        return int(self.analyses.weight) + shared_store().held_bytes

    def leave(self, visitor: str) -> None:
        """A visitor has gone: what they made goes, too."""
        self.visits.leave(visitor)

    def _forget(self, home: Path) -> None:
        for key, run in list(self.runs.items()):
            if run.folder.is_relative_to(home):
                self.runs.drop(key)

    def check(self, recipe: Recipe) -> Check:
        """What can be said of a recipe without reading weights; MergeError only for what is not let in."""
        self.limits.check(recipe)
        found = check(recipe)
        bound_downloads(recipe, self.limits)
        return found

    def opened(self, recipe: Recipe) -> Plan:
        """The plan of a recipe that is let in; MergeError if it is not, or cannot be merged."""
        admit(recipe, self.limits)
        return plan(recipe)

    def analyse(self, recipe: Recipe) -> Generator[Step, None, Report]:
        """Measure what a recipe would do. Returns its report, spectra included; kept under its `analysis_key`.

        That of an example is there already.
        """
        work, state = self.opened(recipe), recipe_state(recipe)
        key = analysis_key(replace(work.recipe, settings=work.settings))
        if key in self.analyses:
            return self.analyses[key]
        shipped = None if state else shipped_analysis(with_all_settings(recipe))
        report = shipped or (yield from lent.analysed(work, self.device))
        self.analyses.keep(key, report)
        return report

    def merge(self, recipe: Recipe, ours: bool = False) -> Generator[Step, None, Run]:
        """Merge into a folder of its own. Returns the Run; kept under the name of that folder.

        ours: a recipe of our own making, let in before; it may name folders of ours.
        """
        work, state = plan(recipe) if ours else self.opened(recipe), recipe_state(recipe)
        home = Path(tempfile.mkdtemp(prefix=f"{recipe.hash}-", dir=self.home))
        try:
            out = home / f"{recipe.method}-{len(recipe.experts)}-experts"
            report = yield from lent.merged(work, out, self.device)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        run = Run(replace(recipe, settings=work.settings), report, out, state)
        self.runs.keep(home.name, run)
        return run

    def merged(self, recipe: Recipe) -> Generator[Step, None, Run]:
        """The run of a recipe: one that is kept, else made now."""
        self.limits.check(recipe)
        full = with_all_settings(recipe)
        return self.run_of(full) or (yield from self.merge(recipe))

    def push(self, run: Run, repo: str, token: str) -> str:
        """Put a run on the Hub with somebody's login. Returns its address; the token is not kept."""
        return push(run.folder, repo, token=token)

    def run_named(self, key: str) -> Run:
        """The run kept under a key (its folder's parent); MergeError if it is another's, or has been dropped since."""
        if key in self._own_runs():
            self.runs.move_to_end(key)
            return self.runs[key]
        raise MergeError("That merge is not kept any more. Press Merge again.")

    def run_of(self, recipe: Recipe) -> Run | None:
        """The newest kept run of the visitor's own that a recipe made of the files as they are now."""
        runs, state = self._own_runs(), recipe_state(recipe)
        known = [run for key, run in runs.items() if run.recipe == recipe or key.startswith(f"{recipe.hash}-")]
        return next((run for run in reversed(known) if run.state == state), None)

    def _own_runs(self) -> dict[str, Run]:
        """The kept runs of whoever asks whose weights are still there."""
        home = self.home
        return {key: run for key, run in list(self.runs.items()) if run.folder.is_relative_to(home) and run.is_whole}

    def answers(self, folders: list[Path], prompt: str, **how) -> Iterator[list[str]]:
        """The answers of several models to one prompt, one model after another: all texts so far, at each new piece."""
        self.limits.check_tokens(how.get("tokens", 0))
        texts = [""] * len(folders)
        for i, folder in enumerate(folders):
            for texts[i] in self._answer(folder, prompt, **how):
                yield list(texts)

    def _answer(self, folder: Path, prompt: str, **how) -> Iterator[str]:
        if lent.IS_LENT:
            yield from lent.answered(folder, prompt, **how)
            return
        with self.using(folder) as model:
            yield from answer(model, prompt, **how)

    def model_folder(self, source: str, base: str, align: str = "none") -> Path:
        """The folder of a source as a model of its own; an adapter is first written out in full.

        align: as a recipe says it, to have the model in the base's coordinates.
        """
        admit_source(source, self.limits)
        folder = folder_of(source) if "+" not in source or Path(source).is_dir() else None
        align = "none" if source == base else align
        if folder is not None and align == "none" and (folder / "config.json").is_file() and not is_adapter(folder):
            return folder
        alone = Recipe(base, (Expert(source),), "linear", align=align)
        self.limits.check(alone)
        key = alone.hash + recipe_state(alone)

        def written() -> Path:
            out = self._written / key / alone.names[0]
            for _ in merge(self.opened(alone), out, self._device()):
                pass
            return out

        return self._adapters.get_or_make(key, written)

    def scores(self, run: Run) -> Generator[Step, None, Board]:
        """Base, experts and the run on the tasks of its bundled experts, as `scoreboard`; nothing for other experts."""
        if not own_tasks(run.recipe):
            return Board()
        return (yield from self.scoreboard(run.recipe, {MERGED: run.folder}))

    def noted(self, run: Run, board: Board) -> Run:
        """The run with its scores in its report; kept as it is then."""
        run = replace(run, report=replace(run.report, scores=board.by_task()))
        self.runs.keep(run.folder.parent.name, run)
        return run

    def whole_report(self, run: Run) -> Generator[Step, None, Report]:
        """All that is known of a run in one report: its analysis with the spectra, its hashes, its scores.

        MergeError if what it was made from has changed since.
        """
        if run.state != recipe_state(run.recipe):
            raise MergeError("A model of this merge has changed since, so it cannot be measured any more. Merge again.")
        analysis, own = (yield from self.analyse(run.recipe)), run.report
        same = ("sha256", "inputs", "skipped", "alignment", "seconds", "peak_memory_mb", "device", "versions", "scores")
        notes = tuple(dict.fromkeys((*own.notes, *analysis.notes)))
        return replace(analysis, notes=notes, **{name: getattr(own, name) for name in same})

    def sweep(
        self, recipe: Recipe, knob: str, values: Sequence[float], asked: Sequence[Questions] | None = None
    ) -> Generator[Step, None, SweepReport]:
        """One knob over a range, each point scored in memory.

        asked: None for the tasks of the bundled experts, an empty list for geometry alone.
        """

        def scorer(run: Running, spot: Recipe) -> Generator[str, None, tuple[TaskScore, ...]]:
            return (yield from scored(run, own_questions(spot) if asked is None else asked))

        wanted = own_questions(recipe) if asked is None else asked
        return (yield from sweep(self.opened(recipe), knob, values, scorer if wanted else None, self._device()))

    def scoreboard(
        self,
        recipe: Recipe,
        merges: Mapping[str, Path | Running],
        asked: Sequence[Questions] | None = None,
        everyone: bool = False,
    ) -> Generator[Step, None, Board]:
        """Score base, experts, and whatever else can run: a name with its folder, or with the model itself.

        asked: None for the tasks of the bundled experts, where each expert has to pass its own alone, unless
        `everyone` is to do all. A Step's `made` is the Board so far.
        """
        admit(recipe, self.limits)
        questions = questions_for(recipe, asked)
        experts = {name: expert.source for name, expert in zip(recipe.names, recipe.experts)}
        models = {BASE: recipe.base, **experts, **merges}
        own = {(expert.source, task.name) for expert, task in own_tasks(recipe)}
        free = everyone or asked is not None
        work = [(m, q) for m in models for q in questions if free or m not in experts or (experts[m], q.task) in own]
        kept_as = {m: _scored_as(at, recipe.base) for m, at in models.items() if not isinstance(at, Running)}
        keys = {(m, q): (*kept_as[m], q) for m, q in work if m in kept_as}
        known = {pair: self._scores[key] for pair, key in keys.items() if key in self._scores}
        board = yield from scoreboard(
            {name: partial(self._made_to_run, model, recipe.base) for name, model in models.items()},
            tuple(experts),
            work,
            known,
        )
        for (model, wanted), key in keys.items():
            self._scores.keep(key, board.scores[model, wanted.task])
        return board

    def _made_to_run(self, model: str | Path | Running, base: str) -> Running:
        if isinstance(model, Running):
            return model
        return self._running(self.model_folder(model, base) if isinstance(model, str) else model)

    def compare(self, one: Run, other: Run) -> Generator[Step, None, Comparison]:
        """The files of two merges of one base, tensor by tensor; kept under both their folders."""
        key = comparison_key(one, other)
        if key not in self.comparisons:
            if folder_of(one.recipe.base).resolve() != folder_of(other.recipe.base).resolve():
                raise MergeError(
                    f"'{one.recipe.base}' is the base of one and '{other.recipe.base}' that of the other. "
                    "Only merges of one base can be compared."
                )
            base = Checkpoint(folder_of(one.recipe.base), one.recipe.base)
            pair = (Checkpoint(run.folder, run.folder.name) for run in (one, other))
            names, wanted = ([layer.name for layer in some] for some in (one.report.layers, one.report.decomposed))
            self.comparisons.keep(key, (yield from compared(base, *pair, names, wanted)))
        return self.comparisons[key]

    def using(self, folder: Path) -> AbstractContextManager[Running]:
        """The model in a folder, loaded; it stays loaded as long as it is in use."""
        return self._models.using(_loaded_as(folder), lambda: running(folder))

    def _running(self, folder: Path) -> Running:
        return self._models.get_or_make(_loaded_as(folder), lambda: running(folder))

    def _device(self):
        return device_named(self.device)


def by_method(recipe: Recipe, method: str) -> Recipe:
    """The same experts merged by another method, with the settings that the page begins with; their weights stay."""
    experts = tuple(replace(expert, settings={}) for expert in recipe.experts)
    return replace(recipe, method=method, experts=experts, settings=method_named(method).starting())


def method_title(report: Report) -> str:
    """What the method of a report is called."""
    return method_named(report.recipe["merge_method"]).title


def analysis_key(recipe: Recipe) -> str:
    """What the analysis of a recipe with all its settings is kept under: another key once its models have changed."""
    return recipe.hash + recipe_state(recipe)


def comparison_key(one: Run, other: Run) -> str:
    """What a comparison of two runs is kept under: with the files of their base as they are now."""
    return f"{one.folder}|{other.folder}|{source_state(one.recipe.base)}"


def _scored_as(model: str | Path, base: str) -> tuple[str, ...]:
    """What the scores of a model are kept under."""
    state = source_state(model) if isinstance(model, str) else folder_state(model)
    return str(model), state, base, source_state(base)


def _loaded_as(folder: Path) -> str:
    """What a loaded model is kept under."""
    return f"{folder}|{folder_state(folder)}"


def _remove_parent(folder: Path) -> None:
    shutil.rmtree(folder.parent, ignore_errors=True)


def _removed(folder: Path, lock: Any) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _size_of(report: Report) -> int:
    """About the bytes that a report takes in memory: a number in a list is a pointer and an object."""
    return 32 * len(report.to_json()) // 10


def start_analysis(lab: Lab) -> Report:
    """The analysis that the page opens with: shipped, so that the first picture waits for nothing."""
    report = shipped_analysis(examples()[FIRST].recipe)
    lab.analyses.keep(analysis_key(Recipe.from_dict(report.recipe)), report)
    return report
