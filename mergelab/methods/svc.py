"""SVC: singular value calibration, a step after any merge (Li et al., ICML 2026, arXiv 2602.05536)."""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.subspace import FLOOR, pulled, size, triplets
from mergelab.method import Knob, Layer, Merged, merge_step

EQUAL = 1e-5  # singular values nearer than this share of the largest are one


@merge_step("SVC", paper="2602.05536")
def svc(
    layer: Layer,
    merged: Merged,
    *,
    alpha: Annotated[
        float, Knob(0.1, 2, "the least factor to shorten by; 1: only what is counted more than once")
    ] = 1.0,
) -> Merged:
    """Shorten each singular direction of the merged delta by the number of times that the experts put it there.

    Δ = U S Vᵀ;  s_ri = ⟨u_rᵀ Δ, w_i u_rᵀ τ_i⟩ / ‖w_i u_rᵀ τ_i‖²: how much longer the merge is there than expert i;
    η_r = max(mean of s_ri over i, alpha) if all are positive, else 1;  S_r ← S_r / η_r.  Vectors stay as they are.

    Unlike the authors' code: an expert without a part in a direction (below 10⁻⁵ of its own length) is left out of the
    mean, and is not divided by 10⁻¹². Tensors that are not decomposed stay as they are, and so does a merge whose
    singular values are all equal (Iso-C): it has no directions of its own.
    """
    if not layer.decompose or not merged.delta.any() or not layer.moving:
        return merged
    found = triplets(merged.delta)
    if len(found.values) > 1 and found.values[0] - found.values[-1] < EQUAL * found.values[0]:
        return merged
    sums, counts, agree = torch.zeros_like(found.values), torch.zeros_like(found.values), torch.ones_like(found.values)
    for i in layer.moving:
        weight, delta = float(layer.weights[i]), layer.deltas[i]
        rows = weight * pulled(delta, found.left)  # (k, in)
        ratio, part = _ratio(rows, found.values, found.right, FLOOR * abs(weight) * size(delta))
        sums, counts, agree = sums + ratio, counts + part, agree * ((ratio > 0) | ~part)
    mean = sums / counts.clamp(min=1)
    factor = torch.where((agree > 0) & (counts > 0), mean.clamp(min=alpha), 1)
    values = found.values / factor
    delta = (found.left * values) @ found.right.T
    facts = {"norm after calibration": float(values.sum() / found.values.sum())}
    return replace(
        merged,
        delta=delta.to(merged.delta),
        facts={**merged.facts, **facts},
        curves={**merged.curves, "calibration": factor},
    )


def _ratio(rows: Tensor, values: Tensor, right: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """How much longer the merge is than one expert, direction by direction; and where that expert has a part at all."""
    lengths = rows.norm(dim=1)
    part = lengths > least
    along = values * (rows * right.T).sum(1)
    return torch.where(part, along / torch.where(part, lengths, 1).square(), 0), part
