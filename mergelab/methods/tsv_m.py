"""TSV-M: merge by task singular vectors (Gargiulo et al., CVPR 2025, arXiv 2412.00081)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.subspace import Triplets, joined, orthogonal, triplets
from mergelab.method import Knob, Layer, Merged, merge_method


@merge_method("TSV-M", paper="2412.00081")
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
    whole = [triplets(layer.deltas[i]) for i in layer.moving]
    parts = [t.leading(count) for t in whole]
    joint = joined(parts)
    weights = torch.cat([layer.weights[i].expand(len(t.values)) for i, t in zip(layer.moving, parts)])
    middle = lambda_ * weights.double() * joint.values
    delta = (orthogonal(joint.left) * middle) @ orthogonal(joint.right).T
    places = {i: (t, part) for i, t, part in zip(layer.moving, whole, parts)}
    facts = {
        "rank kept": tuple(float(len(places[i][1].values)) if i in places else 0.0 for i in range(len(layer.deltas))),
        "energy kept": tuple(_energy(*places[i]) if i in places else 1.0 for i in range(len(layer.deltas))),
        "interference": interference(joint),
    }
    return Merged(delta.to(layer.base), facts)


def _energy(whole: Triplets, part: Triplets) -> float:
    return float(part.values.square().sum() / whole.values.square().sum())


def interference(joint: Triplets) -> float:
    """‖(UᵀU − 1) S (VᵀV − 1)‖₁ / Σσ: the paper's singular task interference, free of scale; 0 if all are orthogonal."""
    across = _overlap(joint.left) @ (joint.values[:, None] * _overlap(joint.right))
    return float(across.abs().sum() / joint.values.sum())


def _overlap(vectors: Tensor) -> Tensor:
    return vectors.T @ vectors - torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
