"""Groups of interchangeable neurons: where each stands in the tensors, and what an element of the group does to them.

An element of `Units` is an order of its units; one of `Heads` is a `HeadOrder`. All are orthogonal, so a group acts on
every tensor alike, weights and statistics, and moves nothing that is not its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mergelab.maths.heads import Freedom, HeadOrder, Turns, same_heads
from mergelab.maths.matching import permutation_matrix, procrustes


@dataclass(frozen=True)
class Slot:
    """Where a group's units stand in one tensor: unit u fills `width` entries of the axis from start + u · stride on.

    role: of an attention slot, q, k, v, o, or order (moved with the key-value heads alone). layer: which of the group's
    layers it is of. statistic: it is measured, not trained, so it is moved and never matched. site: activations that
    stand for the units come into the module of this tensor.
    """

    name: str
    axis: int
    units: int
    start: int = 0
    stride: int = 1
    width: int = 1
    role: str = ""
    layer: int = 0
    statistic: bool = False
    site: bool = False

    @property
    def region(self) -> slice | Tensor:
        """What to index the axis with: a slice where the units leave no gaps, which copies nothing."""
        gapless = self.stride == self.width
        return slice(self.start, self.start + self.units * self.width) if gapless else self.entries.flatten()

    @property
    def entries(self) -> Tensor:
        """The entries of the axis that each unit has. (units, width) int64"""
        return self.start + torch.arange(self.units)[:, None] * self.stride + torch.arange(self.width)

    def rows(self, tensor: Tensor) -> Tensor:
        """The units' part of a tensor. (units, width, rest)"""
        return tensor.movedim(self.axis, 0)[self.region].reshape(self.units, self.width, -1)

    def put(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """The tensor with other rows (units, width, rest) in their place."""
        front = tensor.movedim(self.axis, 0)
        new = rows.reshape(self.units * self.width, *front.shape[1:])
        if len(new) < len(front):
            part, new = new, front.clone()
            new[self.region] = part
        return new.movedim(0, self.axis)


@dataclass(frozen=True)
class Units:
    """Neurons that may stand in any order: `slots` hold all that belongs to them."""

    name: str
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """How many units there are."""
        return self.slots[0].units

    def identity(self) -> Tensor:
        """The order that changes nothing. (size,)"""
        return torch.arange(self.size)

    def random(self, draw: torch.Generator, rotations: bool = True) -> Tensor:
        """An order drawn at random. (size,)"""
        return torch.randperm(self.size, generator=draw)

    def moved(self, slot: Slot, rows: Tensor, element: Tensor) -> Tensor:
        """The rows of a slot (units, width, rest) after an element has acted on them."""
        return rows[element]


@dataclass(frozen=True)
class Heads:
    """The heads of attention layers that share one order of key-value heads (one layer, but for T5's stacks).

    Key-value heads may change places, the query heads of one key-value head among themselves too; inside a head, values
    mix freely, queries and keys as `freedom` allows.
    """

    name: str
    slots: tuple[Slot, ...]
    kv: int
    repeat: int  # query heads for each key-value head
    width: int
    layers: int = 1
    freedom: Freedom = Freedom()

    def identity(self) -> HeadOrder:
        """The element that changes nothing."""
        return same_heads(self.kv, self.repeat, self.width, self.layers)

    def random(self, draw: torch.Generator, rotations: bool = True) -> HeadOrder:
        """An element drawn at random from all that `freedom` allows; without rotations it only permutes."""
        freedom = Freedom(self.freedom.rotary, self.freedom.free, rotations)

        def mixing(size: int) -> Tensor:
            if not rotations:
                return permutation_matrix(torch.randperm(size, generator=draw))
            return procrustes(torch.randn(size, size, generator=draw, dtype=torch.float64))

        def turning() -> Tensor:
            noise = torch.randn(self.width, self.width, generator=draw, dtype=torch.float64)
            return freedom.turn(noise)

        layers = [
            Turns(
                torch.stack([torch.randperm(self.repeat, generator=draw) for _ in range(self.kv)]),
                torch.stack([turning() for _ in range(self.kv)]),
                torch.stack([mixing(self.width) for _ in range(self.kv)]),
            )
            for _ in range(self.layers)
        ]
        return HeadOrder(torch.randperm(self.kv, generator=draw), tuple(layers))

    def moved(self, slot: Slot, rows: Tensor, element: HeadOrder) -> Tensor:
        """The rows of a slot (units, width, rest) after an element has acted on them."""
        if slot.role == "order":
            return rows[element.order]
        turns = element.layers[slot.layer]
        turn = (turns.qk if slot.role in "qk" else turns.vo).to(rows)
        if slot.role in "kv":
            return turn @ rows[element.order]
        grouped = rows.unflatten(0, (self.kv, self.repeat))
        queries = grouped[element.order[:, None], turns.within]
        return (turn[:, None] @ queries).flatten(0, 1)


Group = Units | Heads
Element = Tensor | HeadOrder


@dataclass(frozen=True)
class Symmetry:
    """All that can be done to a model's tensors and leaves its function as it is. family: how the model is called."""

    family: str
    groups: tuple[Group, ...]

    @cached_property
    def slots(self) -> dict[str, list[tuple[Group, Slot]]]:
        """For each tensor that anything moves: by which group, in which slot."""
        found: dict[str, list[tuple[Group, Slot]]] = {}
        for group in self.groups:
            for slot in group.slots:
                found.setdefault(slot.name, []).append((group, slot))
        return found

    def identity(self) -> dict[str, Element]:
        """For each group, by name, the element that changes nothing."""
        return {group.name: group.identity() for group in self.groups}

    def random(self, seed: int = 0, rotations: bool = True) -> dict[str, Element]:
        """An element of every group, drawn at random."""
        draw = torch.Generator().manual_seed(seed)
        return {group.name: group.random(draw, rotations) for group in self.groups}

    def moved(self, name: str, tensor: Tensor, elements: Mapping[str, Element], but: Slot | None = None) -> Tensor:
        """One tensor after the elements have acted on it, in its own dtype; `but` is left as it is.

        Computed in float32 or better: orders lose nothing, rotations round once.
        """
        slots = [(group, slot) for group, slot in self.slots.get(name, ()) if slot is not but]
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if slots else tensor
        for group, slot in slots:
            wide = slot.put(wide, group.moved(slot, slot.rows(wide), elements[group.name]))
        return wide.to(tensor.dtype)
