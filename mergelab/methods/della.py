"""DELLA: drop entries at random, the small ones more often (Deep et al. 2024, arXiv 2406.11617)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.sparse import at_l1, ranks_in_rows
from mergelab.method import Knob, Layer, Merged, merge_method
from mergelab.methods.dare import Normalize, Rescale, Scale, added_up

Density = Annotated[float, Knob(0, 1, "chance that an entry is kept, in the mean", step=0.01, start=0.5, each=True)]
Epsilon = Annotated[
    float, Knob(0, 0.49, "the largest entry's chance is this much higher, the smallest's lower", step=0.01, each=True)
]


@merge_method("DELLA, TIES", paper="2406.11617", memory=8)
def della(
    layer: Layer,
    *,
    density: Density = 1.0,
    epsilon: Epsilon = 0.15,
    lambda_: Scale = 1.0,
    rescale: Rescale = True,
    normalize: Normalize = True,
) -> Merged:
    """Drop small entries more often than large ones, scale up the rest, and average those that agree in sign.

    p = density − ε + 2ε · rank/(n − 1), rank by magnitude in each row;  τ̂_i = c · m_i ∘ τ_i,  m_i ~ Bernoulli(p);
    γ = sign(Σ w_i τ̂_i), a tie counts as +;  Δ = λ · Σ_{agree} w_i τ̂_i / Σ_{agree} w_i.

    As mergekit's `della`: c keeps the sum of magnitudes (the paper: each entry by 1/p). mergekit refuses an ε that
    leaves p outside 0 … 1; here ε is made smaller there, so that `density` stays the mean. The draws are ours: they
    depend on the seed and on the names of layer and expert alone.
    """
    kept = _dropped(layer, density, epsilon, rescale)
    return added_up(layer, kept, lambda_, agree=True, normalize=normalize)


@merge_method("DELLA, linear", paper="2406.11617", memory=8)
def della_linear(
    layer: Layer,
    *,
    density: Density = 1.0,
    epsilon: Epsilon = 0.15,
    lambda_: Scale = 1.0,
    rescale: Rescale = True,
    normalize: Normalize = False,
) -> Merged:
    """Drop small entries more often than large ones, scale up the rest, and add.

    τ̂_i as in `della`;  Δ = λ Σ w_i τ̂_i. As mergekit's `della_linear`.
    """
    kept = _dropped(layer, density, epsilon, rescale)
    return added_up(layer, kept, lambda_, agree=False, normalize=normalize)


def chances(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The chance of each entry to be kept: density ± epsilon by the rank of its magnitude in its row; float64."""
    reach = min(epsilon, density, 1 - density)
    return density - reach + 2 * reach * ranks_in_rows(delta)


def _dropped(layer: Layer, density: float, epsilon: float, rescale: bool) -> Tensor:
    if density == 1:
        return layer.dense
    kept = []
    for i, (share, reach, delta) in enumerate(zip(layer.each(density), layer.each(epsilon), layer.dense)):
        drawn = layer.noise(i, *delta.shape) < chances(delta, share, reach)
        part = delta if share == 1 else torch.where(drawn, delta, 0)
        kept.append(at_l1(part, delta) if rescale else part)
    return torch.stack(kept)
