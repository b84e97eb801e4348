"""Isotropic merging: all directions of the merged delta equally strong (Marczak et al., ICML 2025, 2502.04959)."""

from typing import Annotated

from mergelab.maths.spectral import NOISE, LowRank
from mergelab.maths.subspace import FLOOR, Triplets, joined, orthogonal, size, total, triplets
from mergelab.method import Knob, Layer, Merged, merge_method

Scale = Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)]


@merge_method("Iso-C", paper="2502.04959", entrywise="tables", memory=3)
def iso_c(layer: Layer, *, lambda_: Scale = 1.0) -> Merged:
    """Add all deltas, and make all singular values of the sum equal.

    Σ w_i τ_i = U S Vᵀ;  Δ = λ σ̄ U Vᵀ,  σ̄ = the mean of S.  Tensors that are not decomposed: λ times the weighted mean.

    Unlike the authors' code: directions with σ ≤ 10⁻⁵ σ_1 are rounding; they stay at zero and do not count in σ̄, so
    that the nuclear norm stays. Theirs lifts them to σ̄, too, so that on LoRA experts most of the result is noise, and
    float32 and float64 differ by 118 %.
    """
    if not layer.decompose or not layer.moving:
        return Merged(lambda_ * layer.mean)
    joint = _sum(layer)
    level = joint.values.mean() if len(joint.values) else 0.0
    delta = lambda_ * level * joint.left @ joint.right.T
    facts = {"common singular value": float(level), "joint rank": float(len(joint.values))}
    return Merged(delta.to(layer.base), facts, {"joint_singular_values": joint.values})


@merge_method("Iso-CTS", paper="2502.04959", entrywise="tables", memory=9)
def iso_cts(
    layer: Layer,
    *,
    common: Annotated[float, Knob(0, 1, "share of the directions that are the sum's", step=0.05)] = 0.8,
    lambda_: Scale = 1.0,
) -> Merged:
    """Take the sum's strongest directions and each expert's own ones outside them, all equally strong.

    With n = min(m, n'): U_c = the leading k_c directions of Σ w_i τ_i, k_c = n − T · round((1 − common) n / T);
    then (n − k_c)/T directions of each w_i (τ_i − U_c U_cᵀ τ_i);  U, V = the polar factors of all of them side by side;
    Δ = λ σ̄ U Vᵀ,  σ̄ = the mean of all their singular values.  Tensors that are not decomposed: as in Iso-C.

    Unlike the authors' code: the floor of Iso-C, relative to the expert's own length for what is left outside U_c. LoRA
    experts of a small rank have nothing left there: for them it is Iso-C.
    """
    if not layer.decompose or not layer.moving:
        return Merged(lambda_ * layer.mean)
    side, count = min(layer.base.shape), len(layer.moving)
    own = min(round((side - int(side * common)) / count), side // count)
    shared = _sum(layer).leading(side - own * count)
    specific = [_outside(layer, i, shared, own) for i in layer.moving]
    joint = joined([*specific, shared])
    level = joint.values.mean() if len(joint.values) else 0.0
    delta = lambda_ * level * orthogonal(joint.left) @ orthogonal(joint.right).T
    ranks = dict(zip(layer.moving, (len(part.values) for part in specific)))
    facts = {
        "common singular value": float(level),
        "own directions": tuple(float(ranks.get(i, 0)) for i in range(len(layer.deltas))),
        "joint rank": float(len(shared.values)),
    }
    return Merged(delta.to(layer.base), facts, {"joint_singular_values": joint.values.sort(descending=True).values})


def _sum(layer: Layer) -> Triplets:
    """The decomposition of Σ w_i τ_i; nothing is in it where the deltas cancel out."""
    deltas, weights = [layer.deltas[i] for i in layer.moving], layer.weights[list(layer.moving)].tolist()
    largest = max(abs(weight) * size(delta) for delta, weight in zip(deltas, weights))
    return triplets(total(deltas, weights)).above(NOISE * largest)


def _outside(layer: Layer, expert: int, shared: Triplets, count: int) -> Triplets:
    """An expert's leading directions outside the shared ones."""
    weight, delta = float(layer.weights[expert]), layer.deltas[expert]
    thin = isinstance(delta, LowRank)
    columns = weight * (delta.left if thin else delta).double()  # what spans the outputs
    apart = columns - shared.left @ (shared.left.T @ columns)
    left_over = triplets(LowRank(apart, delta.right.double()) if thin else apart)
    return left_over.above(FLOOR * abs(weight) * size(delta)).leading(count)
