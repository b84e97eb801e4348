"""TIES: trim, elect sign, disjoint merge (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from typing import Annotated

import torch

from mergelab.maths.selection import number_of_nonzero
from mergelab.maths.signs import (
    agreeing,
    at_least,
    blocks,
    conflicts,
    elected,
    gain_of,
    share_of_conflicts,
    threshold_keeping,
)
from mergelab.method import Knob, Layer, Merged, Switch, merge_method


@merge_method("TIES", paper="2306.01708", fewest=2)
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
    size = layer.base.numel()
    counts = [max(1, int(share * size)) if 0 < share < 1 else int(share) * size for share in layer.each(density)]
    thresholds = [threshold_keeping(delta.abs(), count) for delta, count in zip(layer.entries, counts)]
    gains = [gain_of(delta, least) if rescale else 1.0 for delta, least in zip(layer.entries, thresholds)]
    kept, opposed, delta = torch.zeros(len(thresholds), dtype=torch.long), [], layer.base.new_empty(layer.base.shape)
    for result, *parts in blocks(delta, *layer.entries):
        trimmed = torch.stack(list(map(at_least, parts, thresholds)))  # (expert, entries)
        weighted = layer.weighted(trimmed * trimmed.new_tensor(gains)[:, None] if rescale else trimmed)
        chosen = agreeing(weighted, elected(weighted.sum(0), tie="plus"))
        mass = layer.weighted(chosen.sign().abs_()).sum(0) if normalize else torch.ones_like(result)
        result.copy_(lambda_ * chosen.sum(0) / torch.where(mass.abs() < 1e-8, 1, mass))
        kept += torch.tensor([number_of_nonzero(part) for part in trimmed])
        opposed.append(conflicts(weighted))
    facts = {
        "entries kept": tuple((kept / max(layer.base.numel(), 1)).tolist()),
        "sign conflicts": share_of_conflicts(opposed),
    }
    return Merged(delta, facts)
