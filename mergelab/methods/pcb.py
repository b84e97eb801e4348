"""PCB: parameter competition balancing (Du et al., NeurIPS 2024, arXiv 2410.02396)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.signs import conflict_share
from mergelab.method import Knob, Layer, Merged, merge_method

OUTLIERS = 1e-4  # share of the largest and of the smallest magnitudes that are drawn in


@merge_method("PCB", paper="2410.02396", memory=11)
def pcb(
    layer: Layer,
    *,
    ratio: Annotated[float, Knob(0.01, 1, "share of each delta's entries that compete", step=0.01)] = 0.1,
    lambda_: Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)] = 1.0,
) -> Merged:
    """Weigh each entry by how it stands out in its own delta and by how the other experts agree with it.

    With N(x) = (x − min x)/(max x − min x) over one delta's entries:
    β_i = exp(T · N(|τ_i|)²) · tanh(τ_i ∘ Σ_k τ_k);  s_i = N(β_i, drawn in to its top `ratio`), 0 for all others;
    Δ = λ Σ s_i τ_i / Σ s_i.

    The formulas are those of the authors' code, which draws in the 10⁻⁴ largest and smallest |τ_i| first. They take
    the whole model as one vector; here each tensor is one, so that `ratio` holds in each. A delta whose entries are all
    equally strong has s = 0 (theirs: NaN). tanh is not free of scale: deltas 3 times as large do not merge to 3 times
    the same. An expert of weight w is W_0 + w τ.
    """
    flat = layer.weighted(layer.dense).double().reshape(len(layer.deltas), -1)
    if not flat.shape[1]:
        return Merged(torch.zeros_like(layer.base))
    size = _drawn_in(flat.abs(), OUTLIERS, OUTLIERS)
    rivalry = torch.exp(len(flat) * _normalised(size).square()) * torch.tanh(flat * flat.sum(0))
    shares = _normalised(_drawn_in(rivalry, 1 - ratio, 0))
    delta = (shares * flat.sign() * size).sum(0) / shares.sum(0).clamp(min=1e-12)
    facts = {
        "entries kept": tuple((shares > 0).double().mean(1).tolist()),
        "sign conflicts": conflict_share(flat),
    }
    return Merged(lambda_ * delta.view_as(layer.base).to(layer.base), facts)


def _drawn_in(rows: Tensor, low: float, high: float) -> Tensor:
    """Each row with its lowest and highest share of values set to the nearest one that is left."""
    count = rows.shape[1]
    first, last = min(int(count * low), count - 1), max(int(count * (1 - high) - 1), 0)
    least, most = (torch.stack([row.kthvalue(place + 1).values for row in rows])[:, None] for place in (first, last))
    return rows.clamp(least, torch.maximum(least, most))


def _normalised(rows: Tensor) -> Tensor:
    least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return torch.where(most > least, (rows - least) / torch.where(most > least, most - least, 1), 0)
