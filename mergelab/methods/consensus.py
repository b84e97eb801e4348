"""Consensus merging with TALL-masks: keep what several experts want (Wang et al., ICML 2024, arXiv 2405.07813)."""

from typing import Annotated

import torch

from mergelab.maths.signs import conflict_share
from mergelab.method import Knob, Layer, Merged, merge_method


@merge_method("Consensus", paper="2405.07813", fewest=2)
def consensus(
    layer: Layer,
    *,
    k: Annotated[float, Knob(1, 8, "how many experts must want an entry", step=1)] = 2.0,
    mask: Annotated[float, Knob(0, 2, "the paper's λ: the higher, the fewer entries an expert wants", step=0.05)] = 0.4,
    lambda_: Annotated[float, Knob(0, 3, "the paper's α: scale of the merged delta", step=0.05)] = 0.4,
) -> Merged:
    """Add all deltas, and keep the entries that at least k experts want.

    τ_MTL = Σ w_i τ_i;  m_i = |w_i τ_i| > mask · |τ_MTL − w_i τ_i|: the sum is nearer to this expert than to the base;
    Δ = λ · τ_MTL ∘ [Σ m_i ≥ k].

    The paper tunes mask in 0.2 … 0.6 and α on validation data. Unlike there, every tensor is taken by itself, which
    changes nothing: the masks are entry by entry.
    """
    deltas = layer.weighted(layer.dense)
    total = deltas.sum(0)
    wanted = deltas.abs() > mask * (total - deltas).abs()
    votes = wanted.sum(0)
    facts = {
        "entries kept": float((votes >= k).double().mean()) if votes.numel() else 0.0,
        "entries wanted": tuple(float(m.double().mean()) if m.numel() else 0.0 for m in wanted),
        "sign conflicts": conflict_share(deltas),
    }
    return Merged(lambda_ * torch.where(votes >= k, total, 0), facts)
