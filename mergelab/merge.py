"""The loop: read one tensor of everyone, merge it on the accelerator, measure it, write it, say so.

Two generators walk it: `inspect` measures and writes nothing, `merge` writes a Hugging Face folder. Both yield a
LayerReport per tensor, and return a Report; closing one early leaves nothing behind.
"""

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.maths.spectral import factors
from mergelab.method import Layer, Merged
from mergelab.output import Weights, new_folder, write_papers
from mergelab.plan import Plan
from mergelab.report import LayerReport, Report

Progress = Generator[LayerReport, None, Report]


def device_named(name: str = "auto") -> torch.device:
    """The device that accelerate picks for 'auto', or the one that is named. MergeError if it is not there."""
    if name == "auto":
        from accelerate import PartialState  # half a second to import

        found = PartialState().device
        return torch.device("cpu") if found.type == "mps" else found  # mps has no float64
    try:
        torch.zeros(1, dtype=torch.float64, device=name).tolist()  # 'meta' would hold no numbers
        return torch.device(name)
    except (RuntimeError, AssertionError, TypeError):
        raise MergeError(f"Device '{name}' cannot be used on this machine. Use '--device auto', or 'cpu'.") from None


def inspect(plan: Plan, device: torch.device | str = "cpu") -> Progress:
    """Measure what the recipe would do, spectra included; write nothing."""
    started, layers = time.monotonic(), []
    for _, layer in _walked(plan, device, curves=True):
        layers.append(layer)
        yield layer
    return _report(plan, layers, started, device)


def merge(plan: Plan, out: str | Path, device: torch.device | str = "cpu") -> Progress:
    """Write the merged model to `out` as a Hugging Face folder. It appears there whole, or not at all."""
    started, layers = time.monotonic(), []
    with new_folder(out) as folder:
        weights = Weights(folder, plan)
        for tensor, layer in _walked(plan, device, curves=False):
            weights.put(layer.name, tensor)
            layers.append(layer)
            yield layer
        hashes = weights.finish()
        report = replace(_report(plan, layers, started, device), sha256=hashes)
        write_papers(folder, plan, report)
    return report


def _walked(plan: Plan, device: torch.device | str, curves: bool) -> Iterator[tuple[Tensor, LayerReport]]:
    """Each tensor in turn: merged, and what there is to say of it."""
    for name in plan.names:
        with one_thread():
            layer = plan.layer(name, device)
            merged = merged_layer(plan, layer)
            done = layer.base + merged.delta, _measured(layer, merged, plan, curves)
        yield done


@contextmanager
def one_thread() -> Iterator[None]:
    """Factorisations of this size lose more by waiting for each other's threads than they gain: a busy machine is
    a hundred times slower with two threads than with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def merged_layer(plan: Plan, layer: Layer) -> Merged:
    try:
        merged = plan.method(layer, **plan.settings)
    except torch.OutOfMemoryError:
        raise MergeError(f"The device has no memory left for '{layer.name}'. Use '--device cpu'.") from None
    if not torch.isfinite(merged.delta).all():
        raise MergeError(f"The merged '{layer.name}' exceeds the range of floating-point numbers: use smaller weights.")
    return merged


def _measured(layer: Layer, merged: Merged, plan: Plan, curves: bool) -> LayerReport:
    """What there is to say of one merged tensor: the method's facts, and those that every method has."""
    size = _norm(layer.base) or 1.0
    norms = [_norm(delta) for delta in layer.dense]
    facts = {
        **merged.facts,
        "change": tuple(norm / size for norm in norms),
        "merged change": _norm(merged.delta) / size,
        "cosine of deltas": _mean_cosine(layer.dense, norms),
    }
    equal = tuple(name for name, norm in zip(plan.recipe.names, norms) if norm == 0)
    found = _curves(layer, merged) if curves and layer.decompose else {}
    return LayerReport(layer.name, tuple(layer.base.shape), layer.decompose, facts, found, equal)


def _curves(layer: Layer, merged: Merged) -> dict[str, tuple]:
    curves: dict[str, tuple] = {"singular_values": tuple(_rounded(f.values) for f in layer.factors)}
    curves["merged_singular_values"] = _rounded(factors(merged.delta).values)
    rows = {name: curve if curve.dim() == 1 else [*curve] for name, curve in merged.curves.items()}
    return curves | {n: _rounded(c) if isinstance(c, Tensor) else tuple(map(_rounded, c)) for n, c in rows.items()}


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _mean_cosine(deltas: Tensor, norms: list[float]) -> float:
    """The mean cosine between two experts' deltas, zero deltas left out; 0 where there are no two."""
    units = [delta.double() / norm for delta, norm in zip(deltas, norms) if norm]
    count = len(units)
    return (_norm(sum(units)) ** 2 - count) / (count * (count - 1)) if count > 1 else 0.0


def _report(plan: Plan, layers: list[LayerReport], started: float, device: Any) -> Report:
    return Report(
        recipe=replace(plan.recipe, settings=plan.settings).to_dict(),
        experts=plan.recipe.names,
        layers=tuple(layers),
        skipped=dict(plan.skipped),
        notes=plan.notes,
        seconds=round(time.monotonic() - started, 3),
        peak_memory_mb=_peak_memory_mb(),
        device=str(device),
        versions={package: version(package) for package in ("torch", "safetensors")},
    )


def _peak_memory_mb() -> float:
    """The most memory that this process has held; 0 where the system does not say (Windows)."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0.0
    return round(getrusage(RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)
