"""What all eight experts changed in all matrices of the model, in a few numbers; tables and norms are left out.

Shipped, because reading nine models takes seconds; `measured` makes it, and a test makes it again.
"""

import json
from functools import cache
from typing import Any

import torch

from mergelab.lessons.answers import ANSWERS, SKILLS, merge_of
from mergelab.maths.inner import inner_products, norm
from mergelab.maths.spectral import rank_keeping
from mergelab.method import Layer
from mergelab.planning.plan import plan

COUNTS = tuple(range(2, len(SKILLS) + 1))  # how many of the experts are merged


@cache
def survey() -> dict[str, Any]:
    """The shipped numbers, as `measured` makes them."""
    return json.loads(ANSWERS.read_text(encoding="utf-8"))["survey"]


def measured() -> dict[str, Any]:
    """modules; sizes: ‖τ‖ / ‖W_0‖, and half: how many directions hold half of the nuclear norm, per expert and
    module; products: ⟨τ_i, τ_j⟩; opposed: for each of COUNTS, the share of moved weights that are moved both ways."""
    work = plan(merge_of(len(SKILLS), "linear"))
    layers = [work.layer(name, "cpu") for name in work.names if work.decomposes(name)]
    products = sum(inner_products(layer.deltas) for layer in layers)
    both, moved = sum(_pulled(torch.stack(layer.entries)) for layer in layers)
    return {
        "modules": [layer.name for layer in layers],
        "sizes": {skill: [_short(_size(layer, i)) for layer in layers] for i, skill in enumerate(SKILLS)},
        "half": {skill: [_half(layer, i) for layer in layers] for i, skill in enumerate(SKILLS)},
        "products": [[_short(value) for value in row] for row in products.tolist()],
        "opposed": [_short(value) for value in (both / moved).tolist()],
    }


def _size(layer: Layer, expert: int) -> float:
    return norm(layer.deltas[expert]) / norm(layer.base)


def _half(layer: Layer, expert: int) -> int:
    return rank_keeping(layer.factors()[expert].values, 0.5)


def _pulled(stack: torch.Tensor) -> torch.Tensor:
    """For each of COUNTS, how many entries of the first experts go both ways, and how many are moved. (2, count)"""
    up, down = ((side > 0).cumsum(0)[1:] > 0 for side in (stack, -stack))
    return torch.stack([(up & down).flatten(1).sum(1), (up | down).flatten(1).sum(1)])


def _short(value: float) -> float:
    return float(f"{value:.7g}")
