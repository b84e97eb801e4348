"""Fits a Patch: walks the merged model once, and corrects each site as soon as it is reached.

What a site is measured on has thus already been corrected everywhere before it. Measuring all sites on the unrepaired
model and correcting them together is wrong: the corrections compound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mergelab.errors import MergeError, did_you_mean
from mergelab.maths.moments import MODES, Moments, affine, mean_of
from mergelab.repair.patch import Corrected, Patch
from mergelab.repair.sites import Site
from mergelab.repair.statistics import Batch, Statistics
from mergelab.repair.walk import Fitting, walked, walked_in_parts

FEWEST, MOST = 4, 512  # calibration samples


@dataclass(frozen=True)
class How:
    """How to fit. mode: affine, rms or shift; clamp: scales stay within 1/clamp … clamp; prior: rows of trust in s = 1.

    drop_first: as in `statistics`. at_once: all samples as one batch; False walks them in the given batches, to the
    same result, with the memory of one batch and several passes a layer. That is also done, in batches of four, where
    an accelerator has no room for all at once.
    """

    mode: str = "affine"
    clamp: float = 10.0
    prior: float = 0.0
    drop_first: bool = False
    at_once: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise MergeError(f"There is no mode of repair '{self.mode}'. {did_you_mean(self.mode, MODES)}")
        if not self.clamp >= 1:
            raise MergeError(f"A clamp is at least 1 (which lets no scale change), not {self.clamp:g}.")
        if not self.prior >= 0:
            raise MergeError(f"A prior is a number of rows, at least 0, not {self.prior:g}.")


def mean_goals(experts: Sequence[Statistics], weights: Sequence[float] | None = None) -> Statistics:
    """REPAIR's goals from the statistics of any number of experts, all taken on the union of the tasks' data.

    weights: as in `mean_of`.
    """
    return {name: mean_of([one[name] for one in experts], weights) for name in experts[0]}


def fit(
    model: nn.Module,
    goals: Statistics,
    batches: Iterable[Batch],
    sites: Sequence[Site],
    mode: str = "affine",
    *,
    how: How | None = None,
    **about: Any,
) -> Patch:
    """The patch that gives the model the moments `goals` at the sites, on these 4 to 512 samples, in one pass.

    goals: `statistics` of the task's expert on the same samples (TACT), or `mean_goals` (REPAIR). mode: short for
    how=How(mode). about: the Patch's task, target, merged. Exact: afterwards the model's moments are the goals', but
    where channels are dead or clamped. MergeError if the data is too small or the activations are not finite.
    """
    how, batches = how or How(mode), list(batches)
    samples = sum(samples_in(batch) for batch in batches)
    check_size(samples)
    fitting = Fitting([site for site in sites if site.name in goals], partial(_corrected, goals, how), how.drop_first)
    if not fitting.sites:
        raise MergeError("The statistics of the expert hold none of the sites to repair. Take them at the same sites.")
    try:
        if how.at_once:
            walked(model, joined(batches), fitting)
    except torch.OutOfMemoryError:
        fitting.done.clear()
        batches = [part for batch in batches for part in cut(batch, 4)]
    if not fitting.done:
        walked_in_parts(model, batches, fitting)
    missed = [site.name for site in sites if site.name not in fitting.done]
    notes = tuple(f"The forward pass never came by '{name}'." for name in missed)
    return Patch(
        sites=fitting.done, mode=how.mode, samples=samples, tokens=fitting.rows, clamp=how.clamp, notes=notes,
        **({"task": ""} | about),
    )  # fmt: skip


def check_size(samples: int) -> None:
    """MergeError unless there are 4 to 512 calibration samples."""
    if samples < FEWEST:
        few = f"{samples} are" if samples != 1 else "1 is"
        raise MergeError(f"A repair needs at least {FEWEST} calibration samples, and {few} given. 32 are plenty.")
    if samples > MOST:
        raise MergeError(f"A repair takes at most {MOST} calibration samples, and {samples} are given. 32 are plenty.")


def _corrected(goals: Statistics, how: How, site: Site, found: Moments) -> Corrected:
    goal = goals[site.name]
    if goal.mean.shape != found.mean.shape:
        raise MergeError(
            f"'{site.name}' has {len(found.mean)} channels in the merged model, but {len(goal.mean)} in the expert."
        )
    map_ = affine(goal, found, how.mode, clamp=how.clamp, prior=how.prior)
    size = float(goal.var.mean()) or 1.0
    before, after = float(found.var.mean()) / size, float((map_.scale.square() * found.var).mean()) / size
    scale, shift = map_.scale.float(), map_.shift.float()
    return Corrected(site, scale, shift, before, after, map_.dead, map_.clamped, map_.skipped)


def samples_in(batch: Batch) -> int:
    """How many samples a batch holds."""
    return len(next(iter(batch.values()))) if batch else 0


def cut(batch: Batch, size: int) -> list[Batch]:
    """A batch as several of at most so many samples."""
    starts = range(0, samples_in(batch), size)
    return [{key: tensor[start : start + size] for key, tensor in batch.items()} for start in starts]


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, token ids padded on the right to the longest and masked there."""
    if len(batches) == 1:
        return batches[0]
    whole = [_with_masks(batch) for batch in batches]
    for batch in whole[1:]:
        if batch.keys() != whole[0].keys():
            found = f"{', '.join(whole[0])} in one, and {', '.join(batch)} in another"
            raise MergeError(f"The calibration data must hold the same inputs for all tasks; there are {found}.")
    return {key: _stacked(key, [batch[key] for batch in whole]) for key in whole[0]}


def _with_masks(batch: Batch) -> dict[str, Tensor]:
    """The batch with a mask for its ids, if it came without."""
    ones = {
        ids.replace("input_ids", "attention_mask"): torch.ones_like(tensor)
        for ids, tensor in batch.items()
        if ids.endswith("input_ids")
    }
    return ones | dict(batch)


def _stacked(key: str, tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dim() != 2:
        if len(shapes := {tuple(tensor.shape[1:]) for tensor in tensors}) > 1:
            found = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise MergeError(f"The calibration data must be of one shape for all tasks; {key} is {found} per sample.")
        return torch.cat(list(tensors))
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])
