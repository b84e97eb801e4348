"""The loop: read one tensor of everyone, merge it on the accelerator, measure it, write it, say so.

Two generators walk it: `inspect` measures and writes nothing, `merge` writes a Hugging Face folder. Both yield a
LayerReport per tensor as it is done, and return a Report with all of them in the plan's order; closing one early leaves
nothing behind.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch

from mergelab.errors import MergeError
from mergelab.files.digests import hashed
from mergelab.files.stamp import check_unchanged
from mergelab.maths.inner import finite, is_unmoved, unmoved
from mergelab.maths.spectral import LowRank, dense
from mergelab.maths.tall import Pieces, Tall
from mergelab.merging.devices import Team, team
from mergelab.merging.diagnosis import diagnosis, remarks
from mergelab.merging.inputs import input_files, inputs, stamps
from mergelab.merging.journal import fingerprint
from mergelab.merging.measure import Measures
from mergelab.merging.memory import is_lack_of_memory, peak_mb
from mergelab.merging.output import Weights, new_folder, remove_leftovers, write_papers
from mergelab.merging.store import Lookups, shared_store
from mergelab.merging.walk import costs, walked, workers_fitting
from mergelab.method import Layer, Merged, Remembered, Whole
from mergelab.planning.parts import by_rows, parts, rows_at_a_time
from mergelab.planning.plan import Plan
from mergelab.report import LayerReport, Report

Progress = Generator[LayerReport, None, Report]


def inspect(
    plan: Plan, device: torch.device | str = "cpu", workers: int | None = None, diagnose: bool = False
) -> Progress:
    """Measure what the recipe would do, spectra included; write nothing. workers: threads (None: one per core).

    diagnose: more facts (diagnosis.py), at more cost. MergeError if an input has changed since the plan was made.
    """
    started, crew, opened = time.monotonic(), team(), stamps(plan)
    crew.each(lambda: check_unchanged(opened))
    job = _Job(plan, device, Lookups(shared_store()), diagnose=diagnose)
    count, why = workers_fitting(plan, device, workers, job.takes_whole)
    layers = yield from _shared(job, crew, {}, count)
    crew.each(lambda: check_unchanged(opened))
    return _report(plan, layers, started, device, (*why, *job.kept.notes))


def merge(plan: Plan, out: str | Path, device: torch.device | str = "cpu", workers: int | None = None) -> Progress:
    """Write the merged model to `out` as a Hugging Face folder. It appears there whole, or not at all.

    What a killed process has left of the same merge is gone on with. Under a launcher each process does its share.
    MergeError if an input is not the same at the end as when the plan was made.
    """
    started, crew, mark, opened = time.monotonic(), team(), fingerprint(plan, device), stamps(plan)
    sizes = {path: opened[path].size for paths in input_files(plan).values() for path in paths}
    crew.each(lambda: check_unchanged(opened))
    with ExitStack() as stack:

        def begun() -> tuple[Path, tuple[str, ...]]:
            notes = remove_leftovers(out, mark)
            return stack.enter_context(new_folder(out, mark, stays=crew.goes_on_after)), notes

        folder, notes = crew.from_first(begun)
        job = _Job(plan, device, Lookups(shared_store()), Weights(folder, plan, crew.rank))
        stack.callback(job.weights.close)  # before the folder may vanish
        done = crew.from_first(job.weights.begin)
        digests = stack.enter_context(hashed(crew.share(sizes)))
        count, why = workers_fitting(plan, device, workers)
        layers = yield from _shared(job, crew, done, count)
        crew.each(lambda: check_unchanged(opened))
        known = {path: digest for share in crew.each(digests) for path, digest in share.items()}
        notes = (*notes, *_taken_over(done), *why, *job.kept.notes)
        report = _report(plan, layers, started, device, notes)
        if crew.is_first:
            report = replace(report, sha256=job.weights.finish(), inputs=inputs(plan, known))
            check_unchanged(opened)  # not one of them, while all of that was read
            write_papers(folder, plan, report)
    return report


def _shared(job: "_Job", crew: Team, done: dict[str, LayerReport], workers: int) -> Generator:
    """Walk this process's share of what is not done yet; the LayerReports of all processes."""
    yield from done.values()
    left = {name: cost for name, cost in costs(job.plan).items() if name not in done}
    mine, layers = {name: left[name] for name in crew.share(left)}, []
    try:
        for layer in walked(mine, job.done, workers):
            layers.append(layer)
            yield layer
    except Exception as error:
        crew.fail(error)
    shares = crew.gathered((layers, job.kept.counts))
    for share, counts in (share for rank, share in enumerate(shares) if rank != crew.rank):
        job.kept.count_also(*counts)
        yield from share
    return [*done.values(), *(layer for share, _ in shares for layer in share)]


@dataclass(frozen=True)
class _Job:
    """What is done to each tensor."""

    plan: Plan
    device: torch.device | str
    kept: Lookups
    weights: Weights | None = None  # None: look, and write nothing
    diagnose: bool = False

    def takes_whole(self, name: str) -> bool:
        """Whether a tensor is looked at as one: for its diagnostics, or for the spectrum of what it becomes."""
        spectra = self.weights is None and self.plan.decomposes(name) and not by_rows(self.plan, name)
        return self.diagnose or spectra

    def done(self, name: str) -> LayerReport:
        """Merge one tensor, part by part; put it away or, if it is not to be written, look at its spectra too."""
        measures = Measures(self.plan.recipe.names, curves=self.weights is None)
        some = [None] if self.takes_whole(name) else parts(self.plan, name)
        in_rows = by_rows(self.plan, name) and len(some) > 1
        origins = self.plan.origins(name)
        seen = self._surveyed(name, some) if len(some) > 1 and not in_rows else None
        shared = Remembered(self.kept.factorise(self._tall(name, some), origins)) if in_rows else None
        for rows in some:
            layer = replace(self.plan.layer(name, self.device, rows), seen=seen)
            layer = replace(layer, factorise=shared) if in_rows else self.kept.layer(layer, origins)
            merged = merged_layer(self.plan, layer, alone=not in_rows)
            measures.add(layer, merged)
            if self.weights:
                self._put(layer, merged, rows.start if rows else 0)
        report = measures.report(layer, merged, self.plan.base.entries[name].shape)
        if self.weights:
            self.weights.note(report)
        if self.diagnose:
            found = diagnosis(layer, merged, self.plan.written_dtype(name))
            report = replace(report, facts={**report.facts, **found, **merged.facts})
        return report

    def _surveyed(self, name: str, some: Sequence[slice | None]) -> Any:
        """What the method must know of all parts before it can merge one."""

        def walk() -> Iterator[Layer]:
            return (self.plan.layer(name, self.device, rows) for rows in some)

        size = prod(self.plan.base.entries[name].shape)
        whole = Whole(size, len(self.plan.experts), walk)
        return self.plan.method.surveyed(whole, **self.plan.settings_at(name))

    def _tall(self, name: str, some: Sequence[slice]) -> list[LowRank | Tall]:
        """Each expert's delta of a tall matrix, read some rows at a time; of an adapter, its factors."""

        def one(expert: int) -> LowRank | Tall:
            read = Pieces(len(some), lambda index: self.plan.delta(name, expert, self.device, some[index]))
            if all(isinstance(piece, LowRank) for piece in read):
                return LowRank(torch.cat([piece.left for piece in read]), read[0].right)
            return Tall(self.plan.base.entries[name].shape, Pieces(len(some), lambda index: dense(read[index])))

        return [one(expert) for expert in range(len(self.plan.experts))]

    def _put(self, layer: Layer, merged: Merged, first: int) -> None:
        """Write base plus delta, a few rows at a time, so that the sum of a large table takes no memory."""
        if not layer.base.dim():
            return self.weights.put(layer.name, layer.base + merged.delta)
        step = rows_at_a_time(layer.base.shape)
        for start in range(0, max(1, len(layer.base)), step):
            some = slice(start, start + step)
            self.weights.put(layer.name, layer.base[some] + merged.delta[some], first + start)


def merged_layer(plan: Plan, layer: Layer, alone: bool = True) -> Merged:
    """What the plan makes of one layer; MergeError if it fits neither into memory nor into numbers.

    alone: what there is to say of it does not depend on other rows of the same matrix.
    """
    if alone and all(map(is_unmoved, layer.deltas)) and (still := _still(plan, layer)):
        return still
    try:
        merged = plan.method(layer, **plan.settings_at(layer.name))
        for step, settings in plan.steps_at(layer.name):
            merged = step(layer, merged, **settings)
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        where = "'--device cpu', or fewer '--workers'" if layer.base.device.type != "cpu" else "fewer '--workers'"
        shape = "×".join(map(str, layer.base.shape))
        raise MergeError(
            f"There is no memory left to merge '{layer.name}' ({shape}) by {plan.method.title}. Use {where}, a smaller "
            "model, or a method that needs less (`mergelab check` says how much)."
        ) from None
    if not finite(merged.delta):
        raise MergeError(f"The merged '{layer.name}' exceeds the range of floating-point numbers: use smaller weights.")
    return merged


def _still(plan: Plan, layer: Layer) -> Merged | None:
    """What the method makes of a tensor that no expert has changed; None if it would change it even so.

    One entry stands for all of them: where nothing moves, no entry differs from another but in the base.
    """
    base = layer.base.new_ones((1,) * layer.base.dim())
    one = replace(layer, base=base, deltas=(torch.zeros_like(base),) * len(layer.deltas), factorise=None)
    said = plan.method(one, **plan.settings_at(layer.name))
    if said.delta.any():
        return None
    counts = {name: count * layer.base.numel() for name, count in said.counts.items()}
    return replace(said, delta=unmoved(layer.base), counts=counts)


def _taken_over(done: dict[str, LayerReport]) -> tuple[str, ...]:
    return (f"{len(done)} tensors were finished by a run that was broken off, and are taken from it.",) * bool(done)


def _report(plan: Plan, layers: list[LayerReport], started: float, device: Any, notes: tuple[str, ...]) -> Report:
    place = {name: i for i, name in enumerate(plan.names)}
    known = [expert.name for expert in plan.experts if expert.checkpoint is plan.base]
    notes = (*plan.notes, *remarks(layers, plan.recipe.names, known), *notes)
    return Report(
        recipe=replace(plan.recipe, settings=plan.settings).to_dict(),
        experts=plan.recipe.names,
        layers=tuple(sorted(layers, key=lambda layer: place[layer.name])),
        skipped=dict(plan.skipped),
        alignment=plan.alignment,
        notes=(*notes, *_still_ones(layers, plan), *_unweighted(layers, plan)),
        seconds=round(time.monotonic() - started, 3),
        peak_memory_mb=peak_mb(),
        device=str(device),
        versions={package: version(package) for package in ("torch", "numpy", "safetensors")},
    )


def _still_ones(layers: list[LayerReport], plan: Plan) -> list[str]:
    """A note on the tensors that nobody has changed, where some are."""
    count = sum(len(layer.equal_to_base) == len(plan.experts) for layer in layers)
    return [f"{count} of {len(layers)} tensors are the base's own in every expert: copied, not computed."] * (count > 0)


def _unweighted(layers: list[LayerReport], plan: Plan) -> list[str]:
    """A note where every weight is 0 and the method makes the base of that."""
    still = all(layer.facts["merged change"] == 0 and not any(plan.weights_at(layer.name)) for layer in layers)
    return ["All weights are 0: the merge is the base."] * (still and bool(layers))
