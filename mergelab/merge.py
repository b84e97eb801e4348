"""The loop: read one tensor of everyone, merge it on the accelerator, measure it, write it, say so.

Two generators walk it: `inspect` measures and writes nothing, `merge` writes a Hugging Face folder. Both yield a
LayerReport per tensor as it is done, and return a Report with all of them in the plan's order; closing one early leaves
nothing behind.
"""

import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.devices import workers_for
from mergelab.errors import MergeError
from mergelab.maths.inner import finite, is_unmoved, unmoved
from mergelab.measure import Measures
from mergelab.method import Layer, Merged
from mergelab.output import Weights, new_folder, write_papers
from mergelab.plan import Plan
from mergelab.report import LayerReport, Report
from mergelab.walk import costs, parts, walked

Progress = Generator[LayerReport, None, Report]
Put = Callable[[str, Tensor, int], None]  # where a merged tensor goes, or its rows from a first one on


def inspect(plan: Plan, device: torch.device | str = "cpu", workers: int | None = None) -> Progress:
    """Measure what the recipe would do, spectra included; write nothing. workers: threads (None: one per core)."""
    started, layers = time.monotonic(), []
    for layer in walked(costs(plan), lambda name: _done(plan, name, device, None), workers_for(device, workers)):
        layers.append(layer)
        yield layer
    return _report(plan, layers, started, device)


def merge(plan: Plan, out: str | Path, device: torch.device | str = "cpu", workers: int | None = None) -> Progress:
    """Write the merged model to `out` as a Hugging Face folder. It appears there whole, or not at all."""
    started, layers = time.monotonic(), []
    with new_folder(out) as folder:
        weights = Weights(folder, plan)
        for layer in walked(
            costs(plan), lambda name: _done(plan, name, device, weights.put), workers_for(device, workers)
        ):
            layers.append(layer)
            yield layer
        hashes = weights.finish()
        report = replace(_report(plan, layers, started, device), sha256=hashes)
        write_papers(folder, plan, report)
    return report


def _done(plan: Plan, name: str, device: torch.device | str, put: Put | None) -> LayerReport:
    """Merge one tensor, part by part; put it away or, if that is all, look at its spectra too."""
    measures = Measures(plan.recipe.names)
    for rows in parts(plan, name):
        layer = plan.layer(name, device, rows)
        merged = _merged(plan, layer)
        measures.add(layer, merged)
        if put:
            put(name, layer.base + merged.delta, rows.start if rows else 0)
    return measures.report(layer, merged, plan.base.entries[name].shape, curves=put is None)


def _merged(plan: Plan, layer: Layer) -> Merged:
    if all(map(is_unmoved, layer.deltas)) and (still := _still(plan, layer)):
        return still
    try:
        merged = plan.method(layer, **plan.settings)
    except torch.OutOfMemoryError:
        raise MergeError(f"The device has no memory left for '{layer.name}'. Use '--device cpu'.") from None
    if not finite(merged.delta):
        raise MergeError(f"The merged '{layer.name}' exceeds the range of floating-point numbers: use smaller weights.")
    return merged


def _still(plan: Plan, layer: Layer) -> Merged | None:
    """What the method makes of a tensor that no expert has changed; None if it would change it even so.

    One entry stands for all of them: where nothing moves, no entry differs from another but in the base.
    """
    base = layer.base.new_ones((1,) * layer.base.dim())
    said = plan.method(replace(layer, base=base, deltas=(torch.zeros_like(base),) * len(layer.deltas)), **plan.settings)
    return None if said.delta.any() else replace(said, delta=unmoved(layer.base))


def _report(plan: Plan, layers: list[LayerReport], started: float, device: Any) -> Report:
    place = {name: i for i, name in enumerate(plan.names)}
    return Report(
        recipe=replace(plan.recipe, settings=plan.settings).to_dict(),
        experts=plan.recipe.names,
        layers=tuple(sorted(layers, key=lambda layer: place[layer.name])),
        skipped=dict(plan.skipped),
        notes=(*plan.notes, *_still_ones(layers, plan)),
        seconds=round(time.monotonic() - started, 3),
        peak_memory_mb=_peak_memory_mb(),
        device=str(device),
        versions={package: version(package) for package in ("torch", "safetensors")},
    )


def _still_ones(layers: list[LayerReport], plan: Plan) -> list[str]:
    """A note on the tensors that nobody has changed, where some are."""
    count = sum(len(layer.equal_to_base) == len(plan.experts) for layer in layers)
    return [f"{count} of {len(layers)} tensors are the base's own in every expert: copied, not computed."] * (count > 0)


def _peak_memory_mb() -> float:
    """The most memory that this process has held; 0 where the system does not say (Windows)."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0.0
    return round(getrusage(RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)
