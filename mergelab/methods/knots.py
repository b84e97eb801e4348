"""KnOTS: align low-rank updates by a joint SVD, then merge (Stoica et al., ICLR 2025, arXiv 2410.19735)."""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.signs import agreeing, conflict_share, elected, trimmed
from mergelab.maths.sparse import shares_kept
from mergelab.maths.subspace import coordinates
from mergelab.method import Knob, Layer, Merged, merge_method

Scale = Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)]


@merge_method("KnOTS, TIES", paper="2410.19735", fewest=2, memory=13)
def knots_ties(
    layer: Layer,
    *,
    density: Annotated[float, Knob(0.01, 1, "share of each expert's coordinates that is kept", step=0.01)] = 0.2,
    lambda_: Scale = 1.0,
) -> Merged:
    """Write all deltas in one joint basis of output directions, and merge their coordinates by TIES.

    [τ_1 … τ_T] = U S [V_1ᵀ … V_Tᵀ];  X_i = S V_iᵀ, its top `density` by magnitude kept;  γ = sign(Σ w_i X_i);
    Δ = λ U · Σ_{agree} w_i X_i / (their number).  Tensors that are not decomposed: the same on τ itself.

    Unlike the authors' code: the basis is cut at 10⁻⁵ σ_1, not at 10⁻⁵; each tensor is trimmed by itself; adapters stay
    in their thin factors. `density` 0.2 is TIES' own; they tune it, and λ, on validation data.
    """
    return _merged(layer, lambda expert, part: trimmed(part, max(1, int(density * part.numel()))), lambda_)


@merge_method("KnOTS, DARE", paper="2410.19735", fewest=2, memory=13)
def knots_dare(
    layer: Layer,
    *,
    density: Annotated[float, Knob(0.01, 1, "chance that a coordinate is kept", step=0.01)] = 0.5,
    lambda_: Scale = 1.0,
) -> Merged:
    """Write all deltas in one joint basis, drop coordinates at random, and merge the rest by sign.

    X_i = S V_iᵀ as in `knots_ties`;  X̂_i = m_i ∘ X_i / density,  m_i ~ Bernoulli(density);  γ = sign(Σ w_i X̂_i);
    Δ = λ U · Σ_{agree} w_i X̂_i / (their number). The draws depend on the seed and on the names of layer and expert.
    """

    def dropped(expert: int, part: Tensor) -> Tensor:
        return torch.where(layer.noise(expert, *part.shape) < density, part, 0) / density

    return _merged(layer, dropped, lambda_)


def _merged(layer: Layer, sparse: Callable[[int, Tensor], Tensor], scale: float) -> Merged:
    """sparse: (expert's place, coordinates) -> what is kept of them."""
    if not layer.decompose or not layer.moving:
        kept = torch.stack([sparse(i, delta) for i, delta in enumerate(layer.dense)])
        return Merged(scale * _vote(kept, layer.weights), {"entries kept": shares_kept(kept)})
    basis, values, rows = coordinates([layer.deltas[i] for i in layer.moving])
    kept = torch.stack([sparse(i, part) for i, part in zip(layer.moving, rows)])
    chosen = _vote(kept, layer.weights[list(layer.moving)])
    energy, shares = rows.square().sum((1, 2)), [0.0] * len(layer.deltas)
    lengths = rows.new_zeros(len(layer.deltas), len(values))  # (expert, k)
    for i, part, share in zip(layer.moving, rows, (energy / energy.sum()).tolist()):
        shares[i], lengths[i] = share, part.square().sum(1) / values.square()
    facts = {
        "share of energy": tuple(shares),
        "sign conflicts": conflict_share(kept),
        "joint rank": float(len(values)),
    }
    delta = scale * (basis @ chosen)
    return Merged(delta.to(layer.base), facts, {"joint_singular_values": values, "ownership": lengths})


def _vote(kept: Tensor, weights: Tensor) -> Tensor:
    """The mean of the weighted entries whose sign is that of their sum; a tie takes the sign that most entries have."""
    weighted = kept * weights.to(kept).view(-1, *[1] * (kept.dim() - 1))
    chosen = agreeing(weighted, elected(weighted.sum(0), tie="majority"))
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)
