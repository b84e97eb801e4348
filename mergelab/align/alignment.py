"""An alignment: for each group of neurons the element that brings an expert nearest a reference, and how near it is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mergelab.align.activations import matched_by_activations
from mergelab.align.pair import Tensors, pair_of
from mergelab.align.weights import matched_by_weights
from mergelab.errors import MergeError, did_you_mean
from mergelab.symmetry import Element, Symmetry

HOW = ("none", "weights", "activations")
BEST = "best"  # all of them are tried, and the average of the two models is judged on data (compare.py)
Batches = list[Mapping[str, Tensor]]
Build = Callable[[Tensors], torch.nn.Module]


@dataclass(frozen=True)
class Alignment:
    """What is done to an expert's tensors, and what it brings.

    elements: by group name. objective: the cosine between all weights of the two models, before and after each sweep.
    correlations: group -> the signed correlation of each unit with its match, of activations where they were matched by
    those, else of weights (a cosine). distance: ‖A − B‖ / ‖A‖ over all weights, before and after.
    """

    how: str
    symmetry: Symmetry
    elements: Mapping[str, Element]
    objective: tuple[float, ...] = ()
    correlations: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    distance: tuple[float, float] = (0.0, 0.0)

    def applied(self, name: str, tensor: Tensor) -> Tensor:
        """One tensor of the expert in the reference's coordinates: its shape, dtype and device stay."""
        if self.how == "none":
            return tensor
        return self.symmetry.moved(name, tensor, self.elements)

    def aligned(self, expert: Tensors) -> "Aligned":
        """The whole expert in the reference's coordinates, each tensor when it is asked for."""
        return Aligned(self, expert)

    @cached_property
    def correlation(self) -> float:
        """The mean of all matched correlations; 0 if there are none."""
        every = [value for values in self.correlations.values() for value in values]
        return sum(every) / len(every) if every else 0.0

    def facts(self) -> dict[str, Any]:
        """What a report keeps: plain numbers and lists, enough for the two pictures."""
        return {
            "how": self.how,
            "family": self.symmetry.family,
            "distance before": self.distance[0],
            "distance after": self.distance[1],
            "objective": self.objective,
            "mean correlation": self.correlation,
            "correlations": {name: tuple(round(v, 4) for v in values) for name, values in self.correlations.items()},
        }


@dataclass(frozen=True)
class Aligned(Mapping[str, Tensor]):
    """An expert read through its alignment."""

    alignment: Alignment
    expert: Tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.alignment.applied(name, self.expert[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.expert)

    def __len__(self) -> int:
        return len(self.expert)


def alignment(
    reference: Tensors,
    expert: Tensors,
    config: Mapping[str, Any],
    how: str = "weights",
    data: Batches | None = None,
    *,
    seed: int = 0,
    rotations: bool = True,
    build: Build | None = None,
) -> Alignment:
    """How to bring an expert into a reference's coordinates.

    reference, expert: name on disk -> tensor, of one shape. config: their config.json. how: `weights`, `activations`
    (of both models on `data`: batches as the model takes them, without labels), or `none`. rotations: turn rotary
    pairs and mix the dimensions inside a head where that is exact; otherwise only permute, which keeps every bit.
    build: makes a module of tensors, for what transformers does not know.

    An expert that activations would take further away from the reference stays as it is.

    MergeError: unknown architecture, other shapes or vocabulary, no data to measure.
    """
    if how not in HOW:
        raise MergeError(f"There is no alignment '{how}'. {did_you_mean(how, HOW)}")
    pair = pair_of(reference, expert, config)
    elements = start = pair.symmetry.identity()
    apart, objective, correlations = pair.distance(start), (pair.cosine(start),), {}
    if how == "weights":
        elements, objective = matched_by_weights(pair, rotations, seed)
    elif how == "activations":
        elements, correlations = matched_by_activations(pair, config, data or [], rotations, build)
        objective = (*objective, pair.cosine(elements))
        if objective[1] < objective[0]:  # a fine-tuned copy of the reference is in place already
            elements, objective, correlations = start, objective[:1], {}
    found = correlations or {group.name: pair.correlations(group, elements) for group in pair.symmetry.groups}
    return Alignment(how, pair.symmetry, elements, objective, found, (apart, pair.distance(elements)))


def alignments(
    experts: Mapping[str, Tensors], config: Mapping[str, Any], reference: str | None = None, **how: Any
) -> tuple[str, dict[str, Alignment]]:
    """Every expert aligned to one of them: the one that is named, or the one nearest their mean. Its name, and all.

    how: as `alignment` takes it.
    """
    chosen = reference or nearest_the_mean(experts)
    if chosen not in experts:
        raise MergeError(f"There is no expert '{chosen}' to align to. {did_you_mean(chosen, experts)}")
    return chosen, {name: alignment(experts[chosen], expert, config, **how) for name, expert in experts.items()}


def nearest_the_mean(experts: Mapping[str, Tensors]) -> str:
    """The expert whose weights lie nearest the mean of all; the first of those that tie."""
    first = next(iter(experts.values()))
    apart = dict.fromkeys(experts, 0.0)
    for name in first:
        held = [expert[name] for expert in experts.values() if name in expert]
        alike = len(held) == len(experts) and len({tensor.shape for tensor in held}) == 1
        if held[0].is_floating_point() and alike:
            stack = torch.stack([tensor.double() for tensor in held])
            squares = (stack - stack.mean(0)).reshape(len(stack), -1).square().sum(1)
            apart = {expert: apart[expert] + float(square) for expert, square in zip(experts, squares)}
    return min(apart, key=apart.__getitem__)
