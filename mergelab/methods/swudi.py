"""SWUDI: least interference in closed form, regularised by its spectrum (Wei et al. 2026, arXiv 2606.07289)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.spectral import LowRank, dense
from mergelab.maths.subspace import coordinates, transposed
from mergelab.method import Choice, Knob, Layer, Merged, merge_method

LEAST = 1e-8  # eigenvalues of C (its trace is T) are taken to be at least this


@merge_method("SWUDI", paper="2606.07289", entrywise="tables", memory=10)
def swudi(
    layer: Layer,
    *,
    keep: Annotated[float, Knob(0.01, 1, "share of the input directions that is solved for", step=0.01)] = 0.65,
    time: Annotated[float, Knob(1, 10000, "how far to solve: the time of the gradient flow", step=1)] = 300.0,
    start: Annotated[str, Choice(("sum", "mean", "zero"), "what is left as it is where nothing is solved")] = "sum",
    lambda_: Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)] = 1.0,
) -> Merged:
    """Make the merge differ from each expert as little as can be on the inputs that this expert was trained on.

    The rows of τ_i stand for its inputs: minimise Σ ‖(Δ − τ_i) τ_iᵀ‖² / ‖τ_i‖²;  C = Σ τ_iᵀτ_i / ‖τ_i‖² = Q Λ Qᵀ,
    D = Σ τ_i τ_iᵀτ_i / ‖τ_i‖²;  f = 1 − exp(−time · Λ) for the leading ⌈keep · n⌉ eigenvalues, else 0;
    Δ = λ (Δ_0 (1 − Q f Qᵀ) + D Q (f/Λ) Qᵀ),  Δ_0 = Σ τ_i, their mean, or 0.  Tensors that are not decomposed: λ times
    the mean.

    As the authors' code (keep 0.65, time 300 are its defaults; it recommends keep 0.85 for language models), but
    in float64, and in the space that the experts' rows span, where that is small. An expert of weight w is w τ.
    """
    if not layer.decompose or not layer.moving:
        return Merged(lambda_ * layer.mean)
    weights = layer.weights[list(layer.moving)].double()
    frame, parts = _in_rows(layer)  # (in, k), (expert, out, k)
    parts = parts * weights[:, None, None]
    operator, target = _normal_equation(parts)
    eigenvalues, vectors = torch.linalg.eigh(operator)
    eigenvalues, vectors = eigenvalues.flip(0).clamp(min=LEAST), vectors.flip(1)
    kept = min(len(eigenvalues), max(1, int(layer.base.shape[1] * keep + 0.999)))
    solved = 1 - torch.exp(-time * eigenvalues[:kept])
    vectors = vectors[:, :kept]
    first = {"sum": parts.sum(0), "mean": parts.sum(0) / len(layer.deltas), "zero": torch.zeros_like(parts[0])}[start]
    change = ((target @ vectors) / eigenvalues[:kept] - first @ vectors) * solved
    delta = lambda_ * (first + change @ vectors.T)
    delta = delta if frame is None else delta @ frame.T
    facts = {"directions solved": float(kept), "share solved": float(solved.sum() / len(eigenvalues))}
    return Merged(delta.to(layer.base), facts, {"interference_eigenvalues": eigenvalues})


def _normal_equation(parts: Tensor) -> tuple[Tensor, Tensor]:
    """C = Σ τᵀτ / ‖τ‖² and D = Σ τ τᵀτ / ‖τ‖²: the best Δ has Δ C = D. parts: (expert, out, in)"""
    operator, target = parts.new_zeros(parts.shape[2], parts.shape[2]), torch.zeros_like(parts[0])
    for part in parts:
        gram = part.T @ part / part.square().sum()
        operator, target = operator + gram, target + part @ gram
    return operator, target


def _in_rows(layer: Layer) -> tuple[Tensor | None, Tensor]:
    """The moving deltas (expert, out, k) in a basis of inputs (in, k): the experts' own if few span it, else none."""
    deltas = [layer.deltas[i] for i in layer.moving]
    if all(isinstance(delta, LowRank) for delta in deltas):
        basis, _, rows = coordinates([transposed(delta) for delta in deltas])
        return basis, rows.mT
    whole = torch.stack([dense(delta).double() for delta in deltas])  # (expert, out, in)
    if len(whole) * whole.shape[1] >= whole.shape[2]:
        return None, whole
    frame = torch.linalg.qr(whole.flatten(0, 1).T).Q  # all rows of all experts span less than there are inputs
    return frame, whole @ frame
