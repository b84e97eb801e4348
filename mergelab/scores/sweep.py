"""One setting over a range: every point merged in memory, measured against the average, and scored.

The base, the deltas and their factors are read and computed once, as far as they fit into memory; a point then costs
the method's own arithmetic. Its weights are rounded to the number format that a merge would write, so that a point is
the merge that its recipe makes.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.files.checkpoint import FLOATS
from mergelab.files.stamp import check_unchanged
from mergelab.maths.inner import inner_products, norm
from mergelab.maths.signs import NO_MASS
from mergelab.maths.spectral import Factors, LowRank
from mergelab.merging.inputs import stamps
from mergelab.merging.memory import installed
from mergelab.merging.merge import merged_layer
from mergelab.merging.store import Lookups, shared_store
from mergelab.merging.walk import costs, walked, workers_fitting
from mergelab.method import METHODS, Layer, Remembered
from mergelab.model import Running
from mergelab.planning.plan import Plan, complete, plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.recipes.varying import elsewhere
from mergelab.scores.knobs import EXPERTS, checked_values
from mergelab.scores.resident import Resident
from mergelab.scores.scoring import TaskScore
from mergelab.scores.sweep_report import Point, SweepReport
from mergelab.step import Step, relayed

KEPT_BYTES = 4 << 30  # of layers that are remembered from point to point, where a machine has four times as much

Scorer = Callable[[Running, Recipe], Generator[str, None, tuple[TaskScore, ...]]]


def sweep(
    work: Plan,
    knob: str,
    values: Sequence[float],
    scorer: Scorer | None = None,
    device: torch.device | str = "cpu",
) -> Generator[Step, None, SweepReport]:
    """Merge, measure and score at each value of a knob. Without a scorer: geometry alone, for any kind of model.

    A Step's `made` is the SweepReport so far, whenever a point is done. Closing the generator early leaves nothing.
    """
    plans = {
        value: at(work, knob, value) for value in checked_values(work.method, len(work.recipe.experts), knob, values)
    }
    held = _held(work.recipe, knob)
    averages, notes = _averages(work, plans if knob == EXPERTS else {None: work})
    report = SweepReport(knob, work.method.title, (), (), (*work.notes, *held, *notes))
    total = len(plans) + len(averages)
    resident = Resident(work) if scorer else None
    layers = _Layers(device)
    for value, spot, plain in _order(plans, averages):
        name = "the average" if plain else f"{knob} {value:g}"
        point = yield from _point(spot, value, layers, resident, scorer, Step(_count(report), total, name))
        report = _with(report, point, plain)
        yield Step(_count(report), total, name, report)
    return report


def at(work: Plan, knob: str, value: float) -> Plan:
    """The plan with one knob at one value; its recipe says so."""
    if knob == EXPERTS:
        return plan(replace(work.recipe, experts=work.recipe.experts[: int(value)]))
    settings = complete(work.method, {**work.recipe.settings, knob: value})
    return replace(work, settings=settings, recipe=replace(work.recipe, settings=settings))


def _held(recipe: Recipe, knob: str) -> list[str]:
    """Notes on experts with a value of their own for the knob, and on a recipe whose value varies by tensor.

    MergeError if no value of the sweep is for any expert.
    """
    own = {name: e.settings[knob] for name, e in zip(recipe.names, recipe.experts) if knob in e.settings}
    if len(own) == len(recipe.experts) and all(elsewhere(setting) is not None for setting in own.values()):
        raise MergeError(
            f"Every expert has a '{knob}' of its own, which goes before the recipe's: a sweep of it would change "
            "nothing. Take it out of the experts' parameters, or sweep another knob."
        )
    notes = [f"Expert '{name}' has a '{knob}' of its own, which stays as it is at every point." for name in own]
    if isinstance(recipe.settings.get(knob), list):
        notes.append(f"The recipe's '{knob}' varies from tensor to tensor; at each point all have the one number.")
    return notes


def _averages(work: Plan, plans: Mapping[float | None, Plan]) -> tuple[dict[float | None, Plan], list[str]]:
    """The same experts averaged; and why not, where that cannot be."""
    sums = {value: min(abs(sum(spot.weights_at(name))) for name in spot.names) for value, spot in plans.items()}
    found = {value: _averaged(spot) for value, spot in plans.items() if sums[value] >= NO_MASS}
    if not found:
        return {}, ["The experts' weights add up to 0, so there is no average to compare with."]
    lacking = [f"{value:g}" for value in plans if value not in found]
    which = f"The weights of the first {', '.join(lacking)} experts add up to 0: there is no average to compare with."
    return found, [which] * bool(lacking)


def _averaged(work: Plan) -> Plan:
    average = METHODS["linear"]
    settings = average.checked({})
    recipe = replace(work.recipe, method=average.name, settings=settings, then={})
    return replace(work, method=average, settings=settings, recipe=recipe, steps=())


def _order(plans: Mapping[float, Plan], averages: Mapping[float | None, Plan]) -> list[tuple[float | None, Plan, bool]]:
    """From the highest value down: what keeps most directions comes first, so that no factors are computed twice."""
    first = [(value, p, True) for value, p in averages.items() if value not in plans]
    found = []
    for value in sorted(plans, reverse=True):
        found.append((value, plans[value], False))
        found += [(value, averages[value], True)] if value in averages else []
    return first + found


def _with(report: SweepReport, point: Point, plain: bool) -> SweepReport:
    key = "baselines" if plain else "points"
    return replace(report, **{key: tuple(sorted((*getattr(report, key), point), key=lambda p: p.value))})


def _count(report: SweepReport) -> int:
    return len(report.points) + len(report.baselines)


def _point(
    work: Plan, value: float | None, layers: "_Layers", resident: Resident | None, scorer: Scorer | None, step: Step
) -> Generator[Step, None, Point]:
    tally = _Tally()

    def done(name: str) -> str:
        layer = layers.of(work, name)
        merged = merged_layer(work, layer)
        tally.add(layer, merged.delta, merged.facts, layers.size(layer))
        if resident:
            resident.put(name, written(work, name, layer.base + merged.delta))
        layers.keep(layer)
        return name

    workers, _ = workers_fitting(work, layers.device, None, lambda name: True)
    for name in walked(costs(work), done, workers):
        yield replace(step, name=f"{step.name} · {name}")
    check_unchanged(stamps(work))
    scores: tuple[TaskScore, ...] = ()
    if resident and scorer:
        job = scorer(resident.run, work.recipe)
        scores = yield from relayed(job, lambda said: replace(step, name=f"{step.name} · scoring {said}"))
    return Point(value, work.recipe, tally.facts(), scores)


def written(work: Plan, name: str, tensor: Tensor) -> Tensor:
    """A merged tensor, rounded as the merge's file would hold it; MergeError if it does not fit there."""
    entry = work.base.entries[name].cast(work.recipe.written_dtype)
    rounded = tensor.to(FLOATS[entry.dtype])
    if not torch.isfinite(rounded).all():
        raise MergeError(f"The merged '{name}' does not fit into {entry.dtype}. Sweep up to a smaller value.")
    return rounded


class _Layers:
    """Layers with all that was computed of them, as many as fit: those that were done first, as all are at every point.

    Several threads may ask, each for another name.
    """

    def __init__(self, device: torch.device | str):
        self.device, self.most, self.held, self.lock = device, _room(), 0, threading.Lock()
        self.experts: tuple[Expert, ...] = ()
        self.kept: dict[str, Layer] = {}
        self.weights: dict[str, int] = {}  # bytes of those that are kept
        self.sizes: dict[str, float] = {}
        self.lookups = Lookups(shared_store())  # known from another merge, or another number

    def of(self, work: Plan, name: str) -> Layer:
        """The layer, as it was kept or read anew."""
        with self.lock:
            if work.recipe.experts != self.experts:
                self.experts, self.kept, self.weights, self.held = work.recipe.experts, {}, {}, 0
            if name in self.kept:
                return self.kept[name]
        origins = work.origins(name)
        return self.lookups.layer(work.layer(name, self.device), origins)

    def keep(self, layer: Layer) -> None:
        """Hold on to a layer and to all that was computed of it, if there is room."""
        size = _bytes(layer)
        with self.lock:
            before = self.weights.get(layer.name, 0)  # it grows from point to point
            if self.held - before + size <= self.most:
                self.held += size - before
                self.kept[layer.name], self.weights[layer.name] = layer, size
            elif self.kept.pop(layer.name, None):
                self.held -= self.weights.pop(layer.name)

    def size(self, layer: Layer) -> float:
        """The norm of the base's tensor, found once."""
        if layer.name not in self.sizes:
            self.sizes[layer.name] = norm(layer.base)
        return self.sizes[layer.name]


def _room() -> int:
    """KEPT_BYTES, or a quarter of this machine's memory if that is less."""
    return min(KEPT_BYTES, installed() // 4 or KEPT_BYTES)


def _bytes(layer: Layer) -> int:
    """What a layer holds, with what was computed of it: bytes of different tensors."""
    found = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(list(vars(layer).values()))}
    return sum(found.values())


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, (LowRank, Factors, Remembered)):
        yield from _tensors(list(vars(held).values()))
    elif isinstance(held, (list, tuple, dict)):
        for one in held.values() if isinstance(held, dict) else held:
            yield from _tensors(one)


class _Tally:
    """Sums up one point: the method's facts over the decomposed layers, norms and the cosine over all entries.

    Filled by several threads in any order, and added up in the order of names.
    """

    def __init__(self):
        self.seen: dict[str, tuple[float, Tensor, Mapping[str, Any]]] = {}

    def add(self, layer: Layer, delta: Tensor, facts: Mapping[str, Any], size: float) -> None:
        """Take in a layer, what became of it, and the norm of its base."""
        products = inner_products([delta, layer.sum])
        self.seen[layer.name] = size, products, facts if layer.decompose else {}

    def facts(self) -> dict[str, float]:
        """All of it in numbers."""
        squares, products, numbers = 0.0, torch.zeros(2, 2, dtype=torch.float64), {}
        for _, (size, product, facts) in sorted(self.seen.items()):
            squares += size**2
            products += product
            for name, fact in facts.items():
                each = fact if isinstance(fact, tuple) else (fact,)
                numbers.setdefault(name, []).append(sum(each) / len(each))
        base, (change, average) = squares**0.5, products.diagonal().sqrt().tolist()
        both, dot = change * average, float(products[0, 1])
        found = {name: sum(some) / len(some) for name, some in numbers.items()}
        cosine = max(-1.0, min(1.0, dot / both)) if both else 0.0
        return found | {"merged change": change / (base or 1.0), "cosine to the average": cosine}
