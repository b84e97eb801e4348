"""Weight matching: coordinate ascent on the inner product of two models' weights, group by group (arXiv 2209.04836).

Each group is solved exactly with the others held still, so the objective rises until no group has anything to gain. Two
things differ from the authors' code: heads are matched whole, with what may turn inside them, and the first sweep looks
only at tensors whose other axis is in order already, so that what is not aligned yet is not taken for evidence.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mergelab.align.pair import Chosen, Pair, trained
from mergelab.maths.heads import heads_gain, matched_heads
from mergelab.maths.matching import assignment
from mergelab.symmetry import Element, Group, Heads, Slot, Units

SWEEPS = 20
_LEAST_RISE = 1e-6  # of the objective, for another sweep


def matched_by_weights(pair: Pair, rotations: bool, seed: int) -> tuple[dict[str, Element], tuple[float, ...]]:
    """The element of every group, and the objective: the cosine between the models at first and after each sweep."""
    best, objective = pair.symmetry.identity(), [pair.cosine(pair.symmetry.identity())]
    elements = _first_sweep(pair, rotations)
    draw, stale = random.Random(seed), {group.name for group in pair.symmetry.groups}
    for _ in range(SWEEPS):
        objective.append(pair.cosine(elements))
        if objective[-1] > max(objective[:-1]):
            best = elements
        if len(objective) > 2 and objective[-1] <= max(objective[:-1]) + _LEAST_RISE:
            break
        elements = _sweep(pair, best, stale, draw, rotations)
        if all(elements[name] is best[name] for name in best):
            break
    return best, tuple(objective if objective[-1] == max(objective) else [*objective, max(objective)])


def _sweep(pair: Pair, best: dict, stale: set[str], draw: random.Random, rotations: bool) -> dict[str, Element]:
    """Solve every group that is stale, in a random order; `stale` is kept up to date."""
    elements = dict(best)
    for group in draw.sample(pair.symmetry.groups, len(pair.symmetry.groups)):
        if group.name in stale:
            stale.remove(group.name)
            found = _better(pair, group, elements, trained, rotations)
            stale |= set() if found is elements[group.name] else _neighbours(pair, group)
            elements[group.name] = found
    return elements


def _neighbours(pair: Pair, group: Group) -> set[str]:
    """The groups that share a tensor with one: what they had to go by is different once it has moved."""
    sharing = (pair.symmetry.slots[slot.name] for slot in group.slots)
    return {other.name for slots in sharing for other, _ in slots if other is not group}


def _first_sweep(pair: Pair, rotations: bool) -> dict[str, Element]:
    """Elements found in the order of the groups, each from the tensors that only groups before it touch otherwise."""
    elements, known = pair.symmetry.identity(), set()
    for group in pair.symmetry.groups:
        settled = _settled(pair, group, known)
        chosen = settled if any(map(settled, group.slots)) else trained
        elements[group.name] = _better(pair, group, elements, chosen, rotations)
        known.add(group.name)
    return elements


def _settled(pair: Pair, group: Group, known: Iterable[str]) -> Chosen:
    def chosen(slot: Slot) -> bool:
        others = [(theirs, other) for theirs, other in pair.symmetry.slots[slot.name] if other.axis != slot.axis]
        return trained(slot) and all(theirs.name in known for theirs, _ in others)

    return chosen


def _better(pair: Pair, group: Group, elements: dict, chosen: Chosen, rotations: bool) -> Element:
    """The best element of a group while the others stand still; the present one unless that gains something."""
    now = elements[group.name]
    if isinstance(group, Units):
        products = pair.unit_products(group, elements, chosen)
        found = assignment(products)
        gains = _order_gain(products, now), _order_gain(products, found)
    else:
        found, gains = _better_heads(pair, group, elements, chosen, rotations)
    return found if gains[1] > gains[0] + _rounding(pair) * max(map(abs, gains)) else now


def _rounding(pair: Pair) -> float:
    """A relative gain below which nothing was gained."""
    first = next(pair.weights())
    return 1e-11 if pair.reference[first].dtype == torch.float64 else 1e-6


def _better_heads(pair: Pair, group: Heads, elements: dict, chosen: Chosen, rotations: bool) -> tuple:
    layers, order = pair.head_products(group, elements, chosen)
    found = matched_heads(layers, order, replace(group.freedom, rotations=rotations))
    return found, (heads_gain(layers, order, elements[group.name]), heads_gain(layers, order, found))


def _order_gain(products: Tensor, order: Tensor) -> float:
    return float(products.gather(1, order[:, None]).sum())
