"""TSV-M: merge by task singular vectors (Gargiulo et al., CVPR 2025, arXiv 2412.00081)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.spectral import factors
from mergelab.maths.subspace import Triplets, joined, orthogonal, triplets
from mergelab.method import Knob, Layer, Merged, merge_method


@merge_method("TSV-M", paper="2412.00081", entrywise="tables", memory=7)
def tsv_m(
    layer: Layer,
    *,
    lambda_: Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)] = 1.0,
) -> Merged:
    """Give each expert its share of the rank, and make their singular vectors orthogonal to each other.

    τ_i = U_i S_i V_iᵀ, the leading k = ⌊min(m, n)/T⌋ of each;  U = [U_1 … U_T], V = [V_1 … V_T] → their polar factors;
    Δ = λ U⊥ diag(w_i S_i) V⊥ᵀ.  Tensors that are not decomposed: λ times the weighted mean of τ.

    Unlike the authors' code: directions with σ ≤ 10⁻⁵ σ_1 are rounding and are not taken in, and where vectors of
    several experts coincide, nothing is added to fill the space up; theirs fills both with noise, so that on LoRA
    experts float32 and float64 differ by 85 %. T counts the experts that change the tensor. k is at least 1.
    """
    if not layer.decompose or not layer.moving:
        return Merged(lambda_ * layer.mean)
    count = max(1, min(layer.base.shape) // len(layer.moving))
    found = [factors(delta, lambda values: count) for delta in layer.deltas]  # in float64: those kept elsewhere are not
    parts = [triplets(layer.deltas[i], found[i]) for i in layer.moving]
    joint = joined(parts)
    weights = torch.cat([layer.weights[i].expand(len(t.values)) for i, t in zip(layer.moving, parts)])
    middle = lambda_ * weights.double() * joint.values
    delta = (orthogonal(joint.left) * middle) @ orthogonal(joint.right).T
    kept = dict(zip(layer.moving, (len(part.values) for part in parts)))
    facts = {
        "rank kept": tuple(float(kept.get(i, 0)) for i in range(len(found))),
        "energy kept": tuple(_energy(f.values, kept.get(i, 0)) for i, f in enumerate(found)),
        "interference": interference(joint),
    }
    return Merged(delta.to(layer.base), facts, roads=tuple(f.road for f in found))


def _energy(values: Tensor, rank: int) -> float:
    return float(values[:rank].square().sum() / values.square().sum()) if rank else 1.0


def interference(joint: Triplets) -> float:
    """‖(UᵀU − 1) S (VᵀV − 1)‖₁ / Σσ: the paper's singular task interference, free of scale; 0 if all are orthogonal."""
    across = _overlap(joint.left) @ (joint.values[:, None] * _overlap(joint.right))
    return float(across.abs().sum() / joint.values.sum())


def _overlap(vectors: Tensor) -> Tensor:
    return vectors.T @ vectors - torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
