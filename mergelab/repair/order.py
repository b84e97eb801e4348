"""What is asked of one run of repairs, and all that can be wrong with it before anything is merged or loaded."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergelab.errors import MergeError, brief, did_you_mean
from mergelab.files.headers import headers_of
from mergelab.files.sources import folder_of
from mergelab.planning.opened import split
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.repair import FEWEST, MODES, MOST, How
from mergelab.repair.calibration import Sample, read_samples, read_tensors
from mergelab.repair.statistics import Batch
from mergelab.tasks import own_pictures, own_task

AUTO = "auto"  # the mode: affine where it can be written, else rms
TENSORS = ".safetensors"  # the end of a calibration file that holds a model's inputs, and not prompts
_NAME = re.compile(r"[\w-][\w.-]{0,99}")  # names a folder, which is not hidden


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
    mode: str = AUTO
    target: str = "task"
    how: How = field(default_factory=How)
    samples: int = 32
    sidecar: bool = False
    without: bool = False
    unaligned: bool = False
    plain: bool = False

    @property
    def aligned(self) -> bool:
        """Whether the experts went into the merge in the base's coordinates."""
        return self.recipe is not None and self.recipe.align != "none"

    @property
    def experts(self) -> list[Expert]:
        """The tasks' experts as they went into the merge; with a weight of 1 where that is not known."""
        known = {expert.source: expert for expert in self.recipe.experts} if self.recipe else {}
        return [known.get(task.expert, Expert(task.expert)) for task in self.wanted]


def mean_weights(experts: Sequence[Expert]) -> list[float]:
    """The experts' weights in the mean of their statistics: those of the merge. MergeError if these make no mean."""
    weights = [expert.weight for expert in experts]
    if not all(isinstance(weight, (int, float)) and weight >= 0 for weight in weights) or not any(weights):
        raise MergeError(
            "The mean over experts has their weights in the merge, which must be one number each, at least 0, and not "
            f"all 0; they are {brief(weights)}. Repair towards each task's own expert instead."
        )
    return weights


def check_order(order: Order) -> None:
    """MergeError for what is asked wrongly, before anything is merged or loaded."""
    names = [task.name for task in order.wanted]
    if not names:
        raise MergeError("Name at least one task to repair for: --task NAME=EXPERT.")
    for name in names:
        if not _NAME.fullmatch(name):
            allowed = "use up to 100 letters, digits, '-', '_' and '.', the first of them no '.'"
            raise MergeError(f"'{name}' cannot name a task, and the folder of its repair: {allowed}.")
        if names.count(name) > 1:
            raise MergeError(f"Two tasks are called '{name}'. Give each a name of its own: --task NAME=EXPERT.")
    if order.mode not in (AUTO, *MODES):
        raise MergeError(f"There is no mode of repair '{order.mode}'. {did_you_mean(order.mode, (AUTO, *MODES))}")
    if order.target not in ("task", "mean"):
        raise MergeError(f"The target is 'task' or 'mean', not '{order.target}'.")
    if order.target == "mean":
        mean_weights(order.experts)
    if not FEWEST <= order.samples <= MOST:
        raise MergeError(f"Take {FEWEST} to {MOST} calibration samples, not {order.samples}. 32 are plenty.")
    if order.without and order.recipe is None:
        raise MergeError("The merge without an expert can only be made where the recipe is known. Name the recipe.")
    for task in order.wanted:
        _check_task(task)


def _check_task(task: Wanted) -> None:
    """MergeError if nobody has a task's expert, or there is no data for it."""
    sources = [source for source in split(task.expert) if source]
    if task.data is None and own_task(task.expert) is None and own_pictures(task.expert) is None:
        with tempfile.TemporaryDirectory(prefix="mergelab-") as scratch:
            for source in sources:
                headers_of(source, Path(scratch))
        raise MergeError(f"There is no calibration data for '{task.name}'. Give a file of prompts: --data FILE.")
    if task.data is not None:
        read_data(task.data)
    for source in sources:
        folder_of(source)


def read_data(file: str) -> list[Batch] | list[Sample]:
    """What is in a calibration file: samples, or the inputs themselves."""
    return read_tensors(file) if file.endswith(TENSORS) else read_samples(file)
