"""Two models of one shape and the symmetry that they share: their tensors as rows of units; how far apart they are."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import MergeError, broken
from mergelab.files.checkpoint import Checkpoint
from mergelab.maths.heads import HeadProducts, head_products
from mergelab.symmetry import Element, Group, Heads, Slot, Symmetry, Units, symmetry_of

Tensors = Mapping[str, Tensor]
Elements = Mapping[str, Element]
Chosen = Callable[[Slot], bool]


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's floating-point tensors; of a checkpoint, from its headers alone."""
    if isinstance(tensors, Checkpoint):
        return {name: entry.shape for name, entry in tensors.entries.items() if entry.mergeable}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}


def trained(slot: Slot) -> bool:
    """Whether a slot holds weights, and no running statistic."""
    return not slot.statistic


@dataclass(frozen=True)
class Pair:
    """A reference and the expert to be brought into its coordinates. Tensors are read when they are needed."""

    reference: Tensors
    expert: Tensors
    symmetry: Symmetry

    def rows(self, group: Group, slot: Slot, elements: Elements) -> tuple[Tensor, Tensor]:
        """A slot in both models, the expert's moved by every other group. (units, width, rest), float32 or more"""
        moved = self.symmetry.moved(slot.name, wide(self.expert[slot.name]), elements, but=slot)
        return slot.rows(wide(self.reference[slot.name])), slot.rows(moved)

    def shared(self, group: Group) -> list[Slot]:
        """The slots of a group that both models have: an expert may hold a head that the reference ties away."""
        return [slot for slot in group.slots if slot.name in self.reference]

    def unit_products(self, group: Units, elements: Elements, chosen: Chosen) -> Tensor:
        """Inner products between all that belongs to two units, one of each model. (units, units)"""
        total = torch.zeros(group.size, group.size, dtype=torch.float64)
        for slot in filter(chosen, self.shared(group)):
            a, b = self.rows(group, slot, elements)
            total += (a.flatten(1) @ b.flatten(1).T).double()
        return total

    def head_products(self, group: Heads, elements: Elements, chosen: Chosen) -> tuple[list[HeadProducts], Tensor]:
        """The same of attention heads, layer by layer, and of what goes with the order of the heads alone (kv, kv)."""
        order = torch.zeros(group.kv, group.kv, dtype=torch.float64)
        parts: list[dict[str, list]] = [{role: [] for role in "qkvo"} for _ in range(group.layers)]
        for slot in filter(chosen, self.shared(group)):
            a, b = self.rows(group, slot, elements)
            if slot.role == "order":
                order += (a.flatten(1) @ b.flatten(1).T).double()
            else:
                parts[slot.layer][slot.role].append((a, b))
        return [_layer_products(group, part) for part in parts], order

    @cached_property
    def sizes(self) -> tuple[float, float]:
        """The Frobenius norms of the two models' weights, which no element changes; statistics left out."""
        start, squares = self.symmetry.identity(), [0.0, 0.0]
        for name in self.weights():
            for i, tensor in enumerate(self._both(name, start)):
                squares[i] += _dot(tensor, tensor)
                if not math.isfinite(squares[i]):
                    raise broken(name, ("the reference", "the expert")[i])
        return squares[0] ** 0.5, squares[1] ** 0.5

    def cosine(self, elements: Elements) -> float:
        """The cosine between the two models' weights, −1…1; 0 if one has none."""
        size = self.sizes[0] * self.sizes[1]
        return sum(_dot(*self._both(name, elements)) for name in self.weights()) / size if size else 0.0

    def distance(self, elements: Elements) -> float:
        """The relative distance ‖A − g·B‖ / ‖A‖ between the two models' weights."""
        apart = sum(_dot(a - b, a - b) for a, b in (self._both(name, elements) for name in self.weights()))
        return apart**0.5 / (self.sizes[0] or 1.0)

    def _both(self, name: str, elements: Elements) -> tuple[Tensor, Tensor]:
        return wide(self.reference[name]), self.symmetry.moved(name, wide(self.expert[name]), elements)

    def weights(self) -> Iterator[str]:
        """The tensors that count when two models are compared: all floats but running statistics."""
        measured = {name for name, slots in self.symmetry.slots.items() if any(slot.statistic for _, slot in slots)}
        return (name for name in shapes_of(self.reference) if name not in measured)

    def correlations(self, group: Group, elements: Elements) -> tuple[float, ...]:
        """For each unit, the signed cosine between its weights and its match's; of heads, each value dimension's."""
        inner, a_square, b_square = 0.0, 0.0, 0.0
        for slot in self.shared(group):
            if trained(slot) and (isinstance(group, Units) or slot.role in "vo"):
                a, b = self.rows(group, slot, elements)
                b = group.moved(slot, b, elements[group.name])
                sums = [_unit_sums(group, slot, product) for product in (a * b, a * a, b * b)]
                inner, a_square, b_square = inner + sums[0], a_square + sums[1], b_square + sums[2]
        size = (a_square * b_square).sqrt()
        return tuple(torch.where(size > 0, inner / size, 0.0).flatten().tolist())


def pair_of(reference: Tensors, expert: Tensors, config: Mapping[str, Any]) -> Pair:
    """Two models, if the expert has all of the reference's tensors in their shapes; else MergeError names the first."""
    shapes, theirs = shapes_of(reference), shapes_of(expert)
    symmetry = symmetry_of(theirs | shapes, config)
    known = symmetry_of(shapes, config)
    if extra := {group.name for group in symmetry.groups} - {group.name for group in known.groups}:
        raise MergeError(f"The expert has a '{min(extra)}' that the reference has not, so they cannot be aligned.")
    for name, shape in shapes.items():
        if name not in theirs:
            raise MergeError(f"The expert has no tensor '{name}' that the reference has, so they cannot be aligned.")
        if theirs[name] != shape:
            found = f"'{name}' is {list(theirs[name])} in the expert and {list(shape)} in the reference"
            vocabulary = len(shape) == 2 and shape[1:] == theirs[name][1:] and _is_table(name)
            why = "their vocabularies differ" if vocabulary else "only models of one shape have neurons to pair"
            raise MergeError(f"{found}: {why}, so they cannot be aligned.")
    return Pair(reference, expert, symmetry)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is; what holds no floats stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors, row by row in float64: their own dtype is too short for millions of terms."""
    rows = (a * b).flatten(1).sum(1) if a.dim() > 1 else a * b
    return float(rows.double().sum())


def _is_table(name: str) -> bool:
    return any(word in name for word in ("embed", "wte", "shared", "lm_head"))


def _unit_sums(group: Group, slot: Slot, product: Tensor) -> Tensor:
    if isinstance(group, Units):
        return product.sum((1, 2)).double()
    sums = product.sum(2).double()  # (heads, width)
    per_layer = torch.zeros(group.layers, group.kv, group.width, dtype=torch.float64)
    per_layer[slot.layer] = sums.unflatten(0, (group.kv, -1)).sum(1)
    return per_layer


def _layer_products(group: Heads, parts: dict[str, list]) -> HeadProducts:
    """Products of one layer from its slots: weights and biases side by side."""

    def side(which: int) -> list[Tensor]:
        rows = {role: torch.cat([pair[which] for pair in pairs], -1) for role, pairs in parts.items() if pairs}
        empty = torch.zeros(group.kv * group.repeat, group.width, 0, dtype=torch.float64)
        queries = (rows.get(role, empty).unflatten(0, (group.kv, group.repeat)) for role in "qo")
        q, o = queries
        return [q, *(rows.get(role, empty[: group.kv]) for role in "kv"), o]

    return head_products(side(0), side(1))
