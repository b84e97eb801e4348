"""Core space: merge low-rank updates in the small space they span (Panariello et al., NeurIPS 2025, 2509.17786)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch

from mergelab.maths.signs import NO_MASS
from mergelab.maths.subspace import coordinates, transposed
from mergelab.method import Choice, Knob, Layer, Merged, merge_method
from mergelab.methods.iso import iso_c
from mergelab.methods.linear import linear
from mergelab.methods.task_arithmetic import task_arithmetic
from mergelab.methods.ties import ties
from mergelab.methods.tsv_m import tsv_m

INNER = {method.name: method for method in (ties, linear, task_arithmetic, tsv_m, iso_c)}


def _no_average(weights: Sequence[float], inner: str, density: float, lambda_: float) -> str:
    if inner != linear.name or abs(sum(weights)) >= NO_MASS:
        return ""
    return "The weights of an average add up to 0. Change a weight, or set 'inner: task_arithmetic', which sums."


@merge_method("Core space", paper="2509.17786", memory=11, refusal=_no_average)
def core_space(
    layer: Layer,
    *,
    inner: Annotated[str, Choice(tuple(INNER), "the method that merges there")] = "ties",
    density: Annotated[float, Knob(0.01, 1, "of ties: share of each core's entries that is kept", step=0.01)] = 0.2,
    lambda_: Annotated[float, Knob(0, 3, "scale of the merged delta", step=0.05)] = 1.0,
) -> Merged:
    """Write all deltas in one basis of outputs and one of inputs, and merge the small cores by another method.

    U = the left singular vectors of [τ_1 … τ_T], V = the right ones of [τ_1; …; τ_T];  M_i = Uᵀ τ_i V, so that
    τ_i = U M_i Vᵀ without loss;  M = the inner method's merge of the M_i;  Δ = λ U M Vᵀ.  LoRA experts of rank r have
    cores of at most Tr × Tr.  Tensors that are not decomposed: the inner method on τ itself.

    Unlike the authors' code: U and V come from the products τ_i = B_i A_i, and not from B and A apart, whose sizes are
    an accident of training; they span the same. So a dense expert is taken, too, and merges as its adapter does; its
    core is small only if it has a low rank. Only `ties` depends on the choice of basis.
    """
    if not layer.decompose or not layer.moving:
        return _scaled(_inner(layer, inner, density), lambda_)
    deltas = [layer.deltas[i] for i in layer.moving]
    left, values, rows = coordinates(deltas)
    right, _, _ = coordinates([transposed(delta) for delta in deltas])
    cores = left.new_zeros(len(layer.deltas), left.shape[1], right.shape[1])  # (expert, k, k')
    cores[list(layer.moving)] = rows @ right
    core = Layer(
        layer.name,
        torch.zeros_like(cores[0]),
        tuple(cores),
        layer.weights,
        decompose=True,
        experts=layer.experts,
        seed=layer.seed,
    )
    merged = _inner(core, inner, density)
    delta = lambda_ * (left @ merged.delta @ right.T)
    facts = {**merged.facts, "core, rows": float(cores.shape[1]), "core, columns": float(cores.shape[2])}
    return Merged(delta.to(layer.base), facts, {"joint_singular_values": values})


def _inner(layer: Layer, name: str, density: float) -> Merged:
    return INNER[name](layer, density=density) if name == "ties" else INNER[name](layer)


def _scaled(merged: Merged, scale: float) -> Merged:
    return replace(merged, delta=scale * merged.delta)
