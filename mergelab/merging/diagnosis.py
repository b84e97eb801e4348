"""What is worth knowing of a merge before it is made, beside what its method says: rounding, overlap, distance.

Costs a factorisation of every expert's matrices, so it is done only when asked for (`inspect --diagnose`, the page).
"""

from collections.abc import Container, Sequence
from statistics import median

import torch
from torch import Tensor

from mergelab.maths.signs import conflict_share
from mergelab.maths.spectral import Factors, effective_rank, no_vectors, rank_keeping
from mergelab.method import Layer, Merged
from mergelab.report import Fact, LayerReport

_FAR = 0.7  # ‖τ‖ / ‖W_0‖; fine-tunes stay below a third or so, two models that share no training lie near √2
_HALF = 0.5  # the share of the nuclear norm whose directions stand for an expert


def diagnosis(layer: Layer, merged: Merged, dtype: torch.dtype) -> dict[str, Fact]:
    """Facts of one tensor. dtype: that of the written weights."""
    facts: dict[str, Fact] = {
        "entries that survive": tuple(surviving_share(layer.base, delta, dtype) for delta in layer.dense),
        "rounding error": tuple(rounding_error(layer.base, delta, dtype) for delta in layer.dense),
        "merged rounding error": rounding_error(layer.base, merged.delta, dtype),
        "sign conflicts": conflict_share(layer.dense),
    }
    if layer.decompose:
        facts["effective rank"] = tuple(effective_rank(found.values) for found in layer.factors(no_vectors))
        facts["subspace overlap"] = overlaps(layer)
    return facts


def rounding_error(base: Tensor, delta: Tensor, dtype: torch.dtype) -> float:
    """‖(round(W_0 + τ) - W_0) - τ‖ / ‖τ‖: how much of a change is lost in a number format; 0 for no change."""
    lost = (base + delta).to(dtype).to(base.dtype) - base - delta
    size = torch.linalg.vector_norm(delta, dtype=torch.float64)
    return float(torch.linalg.vector_norm(lost, dtype=torch.float64) / size) if size else 0.0


def surviving_share(base: Tensor, delta: Tensor, dtype: torch.dtype) -> float:
    """Of the entries that an expert changes, the share that still differ from the base's in a number format."""
    changed = delta != 0
    count = int(changed.sum())
    moved = (base + delta).to(dtype) != base.to(dtype)
    return int((moved & changed).sum()) / count if count else 1.0


def overlaps(layer: Layer) -> tuple[float, ...]:
    """For each expert, the mean share of its energy that lies in the leading directions of another one's.

    Leading are those that hold half of the nuclear norm. Between unrelated changes it is about rank/side; with no other
    expert, or a change of zero, it is 0.
    """
    factors, shares = layer.factors(_leading), []
    for i, entries in enumerate(layer.entries):
        delta = entries.double()
        others, energy = [f for j, f in enumerate(factors) if j != i and len(f.values)], float(delta.square().sum())
        inside = [_energy_inside(delta, found) for found in others]
        shares.append(sum(inside) / len(inside) / energy if inside and energy else 0.0)
    return tuple(shares)


def _leading(values: Tensor) -> int:
    return rank_keeping(values, _HALF) if len(values) else 0


def _energy_inside(delta: Tensor, found: Factors) -> float:
    leading = found.vectors[:, : _leading(found.values)].double()
    return float((leading.T @ delta if found.left else delta @ leading).square().sum())


def remarks(layers: Sequence[LayerReport], experts: Sequence[str], known: Container[str] = ()) -> tuple[str, ...]:
    """Sentences on experts that lie implausibly far from the base, or equal it; not on those known to be the base."""
    matrices = [layer for layer in layers if layer.decomposed and "change" in layer.facts]
    said = []
    for i, expert in enumerate(experts):
        far = median(layer.facts["change"][i] for layer in matrices) if matrices else 0.0
        if far > _FAR:
            said.append(
                f"Expert '{expert}' lies {far:.2g} of the base's own size away from it (median over the matrices). "
                "Fine-tunes rarely move by more than 0.3; unrelated models lie near 1.4. Is this its base?"
            )
        if layers and expert not in known and all(expert in layer.equal_to_base for layer in layers):
            said.append(f"Expert '{expert}' equals the base in every tensor.")
    return tuple(said)
