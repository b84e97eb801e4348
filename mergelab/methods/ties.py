"""TIES: trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor

from mergelab.maths.selection import number_of_nonzero
from mergelab.maths.signs import (
    blocks,
    conflicts,
    divided,
    elected,
    gains_of,
    larger,
    next_below,
    sizes_agreeing,
    thresholds_keeping,
)
from mergelab.method import Knob, Layer, Merged, Switch, Whole, each, merge_method


def trims(
    whole: Whole, *, density: float | tuple[float, ...], rescale: bool, **settings: Any
) -> tuple[list[Tensor], list[float]]:
    """Per expert the magnitude that an entry must have to be kept, and what is kept is then scaled by."""
    size = whole.size
    counts = [
        max(1, int(share * size)) if 0 < share < 1 else int(share) * size for share in each(density, whole.experts)
    ]

    def walk() -> Iterator[tuple[Tensor, ...]]:
        return (part.entries for part in whole.walk())

    thresholds = thresholds_keeping(walk, counts, size)
    return thresholds, gains_of(walk, thresholds) if rescale else [1.0] * whole.experts


@merge_method("TIES", paper="2306.01708", fewest=2, entrywise="always", survey=trims, memory=5)
def ties(
    layer: Layer,
    *,
    density: Annotated[
        float, Knob(0, 1, "share of each delta's entries that is kept", step=0.01, start=0.2, each=True)
    ] = 1.0,
    lambda_: Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)] = 1.0,
    normalize: Annotated[bool, Switch("divide by the weights of those that agree")] = True,
    rescale: Annotated[bool, Switch("scale what is kept back to the old sum of magnitudes")] = False,
) -> Merged:
    """Keep each delta's largest entries, elect a sign per entry, average those that agree.

    τ̂_i = the top `density` of |τ_i|, with `rescale` times Σ|τ_i| / Σ|τ̂_i|;  γ = sign(Σ w_i τ̂_i), a tie counts as +;
    Δ = λ · Σ_{agree} w_i τ̂_i / Σ_{agree} w_i.

    Trimmed per tensor and voted after weighting, as mergekit does (the paper trims over the whole model, and votes
    unweighted). `density` is 1 where a recipe is silent; the paper uses 0.2. Entries that tie with the last one kept
    are kept too.
    """
    thresholds, gains = layer.seen
    bounds = [next_below(threshold, layer.base.dtype) for threshold in thresholds]
    kept, opposed, delta = torch.zeros(len(bounds)), torch.zeros(2), layer.base.new_empty(layer.base.shape)
    for result, *parts in blocks(delta, *layer.entries):
        trimmed = larger(parts, bounds)  # (expert, entries)
        weighted = layer.weighted(trimmed * trimmed.new_tensor(gains)[:, None] if rescale else trimmed)
        sign = elected(weighted.sum(0), tie="plus")
        sizes = sizes_agreeing(weighted, sign)
        total = lambda_ * sizes.sum(0).mul_(sign)
        result.copy_(divided(total, layer.weighted(sizes.sign_()).sum(0)) if normalize else total)
        kept = kept + torch.tensor([number_of_nonzero(part) for part in trimmed], dtype=torch.float64)
        opposed = opposed + conflicts(weighted).cpu()
    of_all = torch.full_like(kept, layer.base.numel())
    return Merged(delta, counts={"entries kept": torch.stack([kept, of_all]), "sign conflicts": opposed})
