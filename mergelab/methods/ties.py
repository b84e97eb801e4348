"""TIES: trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from typing import Annotated

import torch

from mergelab.maths.signs import agreeing, conflict_share, elected, trimmed
from mergelab.method import Knob, Layer, Merged, Switch, merge_method


@merge_method("TIES", paper="2306.01708", fewest=2)
def ties(
    layer: Layer,
    *,
    density: Annotated[
        float, Knob(0.01, 1, "share of each delta's entries that is kept", step=0.01, start=0.2, each=True)
    ] = 1.0,
    lambda_: Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)] = 1.0,
    normalize: Annotated[bool, Switch("divide by the weights of those that agree")] = True,
) -> Merged:
    """Keep each delta's largest entries, elect a sign per entry, average those that agree.

    τ̂_i = the top `density` of |τ_i|;  γ = sign(Σ w_i τ̂_i), a tie counts as +;
    Δ = λ · Σ_{agree} w_i τ̂_i / Σ_{agree} w_i.

    Trimmed per tensor and voted after weighting, as mergekit does (the paper trims over the whole model, and votes
    unweighted). `density` is 1 where a recipe is silent; the paper uses 0.2. Entries that tie with the last one kept
    are kept too.
    """
    stack = layer.dense
    counts = [max(1, int(share * layer.base.numel())) for share in layer.each(density)]
    kept = torch.stack([trimmed(delta, count) for delta, count in zip(stack, counts)])
    weighted = layer.weighted(kept)
    chosen = agreeing(weighted, elected(weighted.sum(0), tie="plus"))
    delta = chosen.sum(0)
    if normalize:
        mass = layer.weighted((chosen != 0).to(delta)).sum(0)
        delta = delta / torch.where(mass.abs() < 1e-8, 1, mass)
    facts = {
        "entries kept": tuple(int((k != 0).sum()) / max(k.numel(), 1) for k in kept),
        "sign conflicts": conflict_share(weighted),
    }
    return Merged(lambda_ * delta, facts)
