"""DARE: drop entries at random, scale up what is left (Yu et al., ICML 2024, arXiv 2311.03099)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.signs import conflict_share
from mergelab.maths.sparse import at_l1, shares_kept, summed
from mergelab.method import Knob, Layer, Merged, Switch, merge_method

Density = Annotated[float, Knob(0, 1, "chance that an entry is kept", step=0.01, start=0.5, each=True)]
Scale = Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)]
Rescale = Annotated[bool, Switch("scale what is kept back to the old sum of magnitudes")]
Normalize = Annotated[bool, Switch("divide by the weights of those that took part")]


@merge_method("DARE, linear", paper="2311.03099", memory=6)
def dare_linear(
    layer: Layer, *, density: Density = 1.0, lambda_: Scale = 1.0, rescale: Rescale = True, normalize: Normalize = False
) -> Merged:
    """Drop entries of each delta at random, scale up the rest, and add.

    τ̂_i = c · m_i ∘ τ_i,  m_i ~ Bernoulli(density),  c = Σ|τ_i| / Σ|m_i ∘ τ_i|;  Δ = λ Σ w_i τ̂_i.

    As mergekit's `dare_linear`: c keeps the sum of magnitudes (the paper: c = 1/density; the two agree in the mean);
    nothing is dropped at density 1, where a recipe is silent. Which entries are dropped cannot be as there: here it
    depends on the seed and on the names of layer and expert alone.
    """
    return added_up(layer, _dropped(layer, density, rescale), lambda_, agree=False, normalize=normalize)


@merge_method("DARE, TIES", paper="2311.03099", memory=6)
def dare_ties(
    layer: Layer, *, density: Density = 1.0, lambda_: Scale = 1.0, rescale: Rescale = True, normalize: Normalize = False
) -> Merged:
    """Drop entries of each delta at random, scale up the rest, and add those that agree in sign.

    τ̂_i as in `dare_linear`;  γ = sign(Σ w_i τ̂_i), a tie counts as +;  Δ = λ Σ_{agree} w_i τ̂_i. As mergekit's
    `dare_ties`.
    """
    return added_up(layer, _dropped(layer, density, rescale), lambda_, agree=True, normalize=normalize)


def _dropped(layer: Layer, density: float, rescale: bool) -> Tensor:
    if density == 1:
        return layer.dense
    kept = []
    for i, (share, delta) in enumerate(zip(layer.each(density), layer.dense)):
        part = delta if share == 1 else torch.where(layer.noise(i, *delta.shape) < share, delta, 0)
        kept.append(at_l1(part, delta) if rescale else part)
    return torch.stack(kept)


def added_up(layer: Layer, kept: Tensor, scale: float, *, agree: bool, normalize: bool) -> Merged:
    """The weighted sum of what is left of each delta (expert, …), and what there is to say of it."""
    weighted = layer.weighted(kept)
    delta = summed(weighted, layer.weights, agree=agree, normalize=normalize)
    return Merged(scale * delta, {"entries kept": shares_kept(kept), "sign conflicts": conflict_share(weighted)})
