"""Checks and controls: whether two experts speak of the same channels, and how much of a gain is the repair's own."""

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.repair.fit import How, fit
from mergelab.repair.patch import applied
from mergelab.repair.sites import Site
from mergelab.repair.statistics import Batch, Statistics, rows_at

_SITES, _ROWS = 8, 2048  # enough to see it
_OWN = 0.2  # of the channels, this share must find itself, beyond those that do by chance


def repaired_score(
    model: nn.Module,
    goals: Statistics,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    score: Callable[[nn.Module], float],
    how: How | None = None,
) -> float:
    """What a model scores with the repair that another one got: the control for a gain that merging has no part in.

    Given the unmerged base, it says how much of the task the statistics alone carry; given the merge without the
    task's expert, how much needs no share of that expert in the weights.
    """
    with applied(model, fit(model, goals, batches, sites, how=how)):
        return score(model)


def check_coordinates(one: nn.Module, other: nn.Module, batch: Batch, sites: Sequence[Site], names=("one", "other")):
    """MergeError if channel i of one expert is not channel i of the other: networks that must be aligned first."""
    share = own_channels(one, other, batch, sites)
    if share < _OWN:
        found = f"beyond chance, {max(share, 0):.0%} of them resemble their namesakes most"
        raise MergeError(
            f"'{names[0]}' and '{names[1]}' do not speak of the same channels: {found}. "
            "They come from different trainings: align one to the other first."
        )


def own_channels(one: nn.Module, other: nn.Module, batch: Batch, sites: Sequence[Site]) -> float:
    """The share of channels of one model that correlate best with the channel of the same number in the other, on
    the same samples, beyond chance: the median over a few sites. About 1 after fine-tuning from one base, 0 for
    independent networks."""
    outputs = [site for site in sites if site.side == "out"] or list(sites)
    some = outputs[:: max(1, len(outputs) // _SITES)]
    seen = [rows_at(model, batch, some, _ROWS) for model in (one, other)]
    shares = [_own_share(seen[0][name], seen[1][name]) for name in seen[0] if name in seen[1]]
    return median(shares)


def _own_share(one: Tensor, other: Tensor) -> float:
    """Of the channels of one, the share whose most correlated channel in the other has the same number; 0 by chance."""
    if one.shape != other.shape:
        return 0.0
    both = [(x - x.mean(0)) / (x.std(0) + 1e-12) for x in (one, other)]
    best = (both[0].T @ both[1]).argmax(1)
    share, chance = float((best == torch.arange(len(best))).double().mean()), 1 / len(best)
    return (share - chance) / (1 - chance) if len(best) > 1 else 1.0
