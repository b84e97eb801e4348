"""Model breadcrumbs: leave out the largest and the smallest entries (Davari & Belilovsky, ECCV 2024, 2312.06795)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.sparse import at_l1, middling
from mergelab.method import Knob, Layer, Merged, merge_method
from mergelab.methods.dare import Normalize, Rescale, Scale, added_up

Density = Annotated[float, Knob(0, 1, "share of each delta's entries that is kept", step=0.01, start=0.9, each=True)]
Gamma = Annotated[float, Knob(0, 0.5, "share of the largest entries that is left out", step=0.005, each=True)]


@merge_method("Breadcrumbs", paper="2312.06795", memory=5)
def breadcrumbs(
    layer: Layer,
    *,
    density: Density = 1.0,
    gamma: Gamma = 0.01,
    lambda_: Scale = 1.0,
    rescale: Rescale = False,
    normalize: Normalize = False,
) -> Merged:
    """Leave out each delta's outliers and its smallest entries, and add the rest.

    Of n entries by magnitude, the largest γn are left out, and the next density · n are τ̂_i;  Δ = λ Σ w_i τ̂_i.

    As mergekit's `breadcrumbs`: where density and γ add up to more than 1, fewer outliers go; at density 1, where a
    recipe is silent, nothing is left out (the paper: density 0.9, γ 0.01, λ 0.3). Entries that tie with the first or
    the last kept are kept too, where mergekit takes some of them.
    """
    return added_up(layer, _kept(layer, density, gamma, rescale), lambda_, agree=False, normalize=normalize)


@merge_method("Breadcrumbs, TIES", paper="2312.06795", memory=5)
def breadcrumbs_ties(
    layer: Layer,
    *,
    density: Density = 1.0,
    gamma: Gamma = 0.01,
    lambda_: Scale = 1.0,
    rescale: Rescale = False,
    normalize: Normalize = False,
) -> Merged:
    """Leave out each delta's outliers and its smallest entries, and add those that agree in sign.

    τ̂_i as in `breadcrumbs`;  γ_sign = sign(Σ w_i τ̂_i), a tie counts as +;  Δ = λ Σ_{agree} w_i τ̂_i. As mergekit's
    `breadcrumbs_ties`.
    """
    return added_up(layer, _kept(layer, density, gamma, rescale), lambda_, agree=True, normalize=normalize)


def _kept(layer: Layer, density: float, gamma: float, rescale: bool) -> Tensor:
    if density == 1:
        return layer.dense
    size, kept = layer.base.numel(), []
    for share, outliers, delta in zip(layer.each(density), layer.each(gamma), layer.dense):
        part = delta if share == 1 else middling(delta, int(share * size), int(outliers * size))
        kept.append(at_l1(part, delta) if rescale else part)
    return torch.stack(kept)
