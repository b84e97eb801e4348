"""Activation matching: units are paired by how they respond to the same data (arXiv 2209.04836, section 3.1).

What is compared is what comes into the modules that read the units, so that both networks' own weights have spoken. A
residual stream is seen behind its norms, at every block. Where activations cannot tell units apart, as those that never
fire, their weights do. Queries and keys are turned by their weights, once all else is in place. Padding is left out,
and of text the first position, whose activations dwarf all others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mergelab.align.pair import Pair, trained
from mergelab.errors import MergeError
from mergelab.maths.heads import HeadOrder, HeadProducts, matched_heads, turned_to_agree
from mergelab.maths.matching import assignment
from mergelab.model import built, outputs, sees_encoder
from mergelab.symmetry import Element, Group, Heads, Slot, Units, symmetry_of

Batch = Mapping[str, Tensor]
_TIE = 1e-3  # of correlation: below that, two matches are equally good, and weights decide
_SWEEPS = 5  # over the groups, while weights still change something


@dataclass
class Moments:
    """Means and products of two models' activations at a site, over all positions so far. float64, about a point."""

    count: int = 0
    about: tuple[Tensor, ...] = ()
    sums: list[Tensor] = field(default_factory=list)  # of a, b, a bᵀ, a², b bᵀ

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in activations (positions, units) of both."""
        a, b = a.double(), b.double()
        if not self.count:
            self.about = a.mean(0), b.mean(0)
        a, b = a - self.about[0], b - self.about[1]
        new = [a.sum(0), b.sum(0), a.T @ b, a.square().sum(0), b.T @ b]
        self.sums = [old + part for old, part in zip(self.sums, new)] if self.count else new
        self.count += len(a)

    @property
    def covariances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a with b (units, units), the variances of a (units,), the covariances of b (units, units)."""
        a, b, ab, aa, bb = (part / self.count for part in self.sums)
        return ab - a[:, None] * b, aa - a.square(), bb - b[:, None] * b


def matched_by_activations(
    pair: Pair, config: Mapping[str, Any], data: list[Batch], rotations: bool, build: Callable | None
) -> tuple[dict[str, Element], dict[str, tuple[float, ...]]]:
    """The element of every group, and the signed correlation of each unit with its match. MergeError without data."""
    if not data:
        raise MergeError("Matching by activations needs calibration data: prompts or images to run both models on.")
    models = [build(tensors) if build else built(config, tensors) for tensors in (pair.reference, pair.expert)]
    groups = _groups_in_memory(pair, models[0], config)
    elements, correlations, alike = pair.symmetry.identity(), {}, {}
    for group, sites in zip(pair.symmetry.groups, _measured(models, groups, data)):
        if sites is None:
            continue  # tensors that this class of model does not load: they stay as they are
        if isinstance(group, Units):
            alike[group] = sum(_correlation(*moments.covariances) for moments in sites) / len(sites)
            elements[group.name] = assignment(alike[group])
        else:
            elements[group.name], correlations[group.name] = _matched_heads(group, sites, rotations)
    _settle_ties(pair, alike, elements)
    for group, similar in alike.items():
        correlations[group.name] = tuple(similar.gather(1, elements[group.name][:, None])[:, 0].tolist())
    for group in pair.symmetry.groups:
        if isinstance(group, Heads):
            layers, _ = pair.head_products(group, elements, lambda slot: True)
            freedom = replace(group.freedom, rotations=rotations)
            elements[group.name] = turned_to_agree(layers, elements[group.name], freedom)
    return elements, correlations


def _groups_in_memory(pair: Pair, model: nn.Module, config: Mapping[str, Any]) -> list[Group | None]:
    """The same groups, in the same order, by the names that the tensors have in a loaded model; None: it lacks one."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    groups = list(symmetry_of(shapes, config).groups)
    if len(groups) == len(pair.symmetry.groups):
        return groups
    by_name = {group.name: group for group in groups}
    found = [by_name.pop(group.name, None) for group in pair.symmetry.groups]
    if by_name:
        raise MergeError(
            f"A {type(model).__name__} in memory has '{next(iter(by_name))}', and these files have not: activations "
            "cannot be matched with them. Use 'align: weights'."
        )
    return found


def _measured(models: list[nn.Module], groups: list[Group | None], data: list[Batch]) -> list[list[Moments] | None]:
    """Moments of both models at every site of every group; None for a group that they lack."""
    sites = [[slot for slot in group.slots if slot.site] if group else [] for group in groups]
    moments = [[Moments() for _ in slots] for slots in sites]
    modules = {slot.name.removesuffix(".weight") for slots in sites for slot in slots}
    for batch in data:
        a, b = ({**_inputs(model, modules, batch)} for model in models)
        for slots, found in zip(sites, moments):
            for slot, moment in zip(slots, found):
                module = slot.name.removesuffix(".weight")
                moment.add(_units_in(slot, a[module], batch), _units_in(slot, b[module], batch))
    return [found if group else None for group, found in zip(groups, moments)]


def _inputs(model: nn.Module, modules: set[str], batch: Batch) -> dict[str, Tensor]:
    """What comes into each module in one forward pass."""
    seen: dict[str, Tensor] = {}
    with _watched(model, modules, seen.__setitem__):
        outputs(model, batch)
    if missed := modules - seen.keys():
        raise MergeError(f"The data never reaches '{min(missed)}': give the model all the inputs that it takes.")
    if broken := [module for module in seen if not torch.isfinite(seen[module]).all()]:
        raise MergeError(f"What comes into '{broken[0]}' is NaN or infinite on this data: a model is broken.")
    return seen


@contextmanager
def _watched(model: nn.Module, modules: set[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0].detach()))
        for name, module in model.named_modules()
        if name in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _units_in(slot: Slot, activations: Tensor, batch: Batch) -> Tensor:
    """What the units do at every position that counts. (positions, units); of heads (positions, heads · width)"""
    if activations.dim() == 4:  # images: (batch, channel, row, column)
        activations = activations.movedim(1, -1)
    elif "input_ids" in batch and activations.dim() == 3:
        activations = activations[_counting(activations, batch, slot.name.removesuffix(".weight"))]
    rows = activations.flatten(0, -2)[:, slot.entries]  # (positions, units, width)
    return rows.flatten(1) if slot.role else rows.movedim(2, 1).flatten(0, 1)


def _counting(activations: Tensor, batch: Batch, module: str) -> Tensor:
    """Which positions of text count: not padding, and not the first. (batch, position) bool"""
    decodes = "decoder_input_ids" in batch and not sees_encoder(module)
    mask = batch.get("decoder_attention_mask" if decodes else "attention_mask")
    here = activations.shape[:2]
    keep = mask.bool() if mask is not None and mask.shape == here else torch.ones(here, dtype=torch.bool)
    later = keep & (keep.cumsum(1) > 1)
    return later if later.any() else keep


def _undecided(similar: Tensor) -> Tensor:
    """The units of the reference that have two matches equally good. similar: (units, units). (undecided,) int64"""
    if len(similar) < 2:
        return torch.empty(0, dtype=torch.long)
    best, next_best = similar.topk(2, dim=1).values.T
    return (best - next_best < _TIE).nonzero()[:, 0]


def _settle_ties(pair: Pair, alike: Mapping[Units, Tensor], elements: dict[str, Element]) -> None:
    """Choose by weights among matches that activations hold for equally good. alike: correlations (units, units)."""
    undecided = {group: units for group, similar in alike.items() if len(units := _undecided(similar))}
    for _ in range(_SWEEPS):
        before = dict(elements)
        for group, units in undecided.items():
            order = elements[group.name].clone()
            matches = order[units]
            weights, among = pair.unit_products(group, elements, trained), (units[:, None], matches)
            gain = alike[group][among] + _TIE * weights[among] / weights.abs().max().clamp(min=1e-30)
            order[units] = matches[assignment(gain)]
            elements[group.name] = order
        if all(torch.equal(elements[group.name], before[group.name]) for group in undecided):
            return


def _correlation(ab: Tensor, a: Tensor, bb: Tensor) -> Tensor:
    """Pearson's, signed; 0 for a unit that never moves. (units, units)"""
    size = (a.clamp(min=0)[:, None] * bb.diagonal().clamp(min=0)).sqrt()
    return torch.where(size > 0, ab / size, 0.0)


def _matched_heads(group: Heads, sites: list[Moments], rotations: bool) -> tuple[HeadOrder, tuple[float, ...]]:
    """Heads paired by the covariance of what they hand on, which is also what turns their values."""
    covariances = [moments.covariances for moments in sites]
    layers = [_contexts(group, ab / (a.sum() * bb.trace()).sqrt().clamp(min=1e-30)) for ab, a, bb in covariances]
    nothing = torch.zeros(group.kv, group.kv, dtype=torch.float64)
    element = matched_heads(layers, nothing, replace(group.freedom, rotations=rotations))
    found: list[float] = []
    for turns, (ab, a, bb) in zip(element.layers, covariances):
        move = _as_matrix(group, element.order, turns.within, turns.vo)
        moved = (ab @ move.T).diagonal(), (move @ bb @ move.T).diagonal()
        size = (a * moved[1]).clamp(min=0).sqrt()
        found += torch.where(size > 0, moved[0] / size, 0.0).tolist()
    return element, tuple(found)


def _contexts(group: Heads, ab: Tensor) -> HeadProducts:
    """A covariance of heads' outputs as the products that matching takes; queries, keys and values are silent."""
    shape = (group.kv, group.repeat, group.width)
    o = ab.unflatten(1, shape).unflatten(0, shape).permute(0, 3, 1, 4, 2, 5)
    silent = torch.zeros(group.kv, group.kv, group.width, group.width, dtype=torch.float64)
    return HeadProducts(torch.zeros_like(o), silent, silent, o)


def _as_matrix(group: Heads, order: Tensor, within: Tensor, vo: Tensor) -> Tensor:
    """What an element does to the heads' outputs, as one matrix. (heads · width, heads · width)"""
    size = group.kv * group.repeat * group.width
    eye = torch.eye(size, dtype=torch.float64).unflatten(0, (group.kv, group.repeat, group.width))
    return (vo[:, None] @ eye[order[:, None], within]).flatten(0, 2)
