"""A repair told from start to end: what the expert, the merged and the repaired model have at every site."""

from collections.abc import Sequence

from torch import nn

from mergelab.maths.moments import Moments
from mergelab.repair.fit import How, check_size, fit, samples_in
from mergelab.repair.patch import Patch, applied
from mergelab.repair.sites import Site
from mergelab.repair.statistics import Batch, Statistics, statistics
from mergelab.report import Channels, RepairReport


def repair(
    model: nn.Module,
    goals: Statistics,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    how: How | None = None,
    **about: str,
) -> tuple[Patch, RepairReport]:
    """`fit`, with the statistics of the merged model before it and after it: the patch, and what pictures show.

    Three passes. The model is left as it was. about: the patch's task, target, merged.
    """
    how = how or How()
    check_size(sum(map(samples_in, batches)))
    before = statistics(model, batches, sites, drop_first=how.drop_first)
    patch = fit(model, goals, batches, sites, how=how, **about)
    with applied(model, patch):
        after = statistics(model, batches, sites, drop_first=how.drop_first)
    report = RepairReport(
        patch.task, patch.target, patch.mode, patch.samples, patch.tokens, channels(goals, before, after),
        **patch.counts, notes=patch.notes,
    )  # fmt: skip
    return patch, report


def channels(expert: Statistics, merged: Statistics, repaired: Statistics | None = None) -> tuple[Channels, ...]:
    """The statistics of two or three models at the same sites, as a report keeps them."""
    told = []
    for name in (name for name in expert if name in merged):
        last = _numbers(repaired[name]) if repaired else ((), ())
        told.append(Channels(name, *_numbers(expert[name]), *_numbers(merged[name]), *last))
    return tuple(told)


def _numbers(one: Moments) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(map(_short, one.mean.tolist())), tuple(map(_short, one.var.tolist()))


def _short(number: float) -> float:
    return float(f"{number:.6g}")
