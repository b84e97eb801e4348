"""DRM: Decom-Renorm-Merge (Chaichana et al., arXiv 2505.23117), in its two directions."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.selection import number_of_nonzero
from mergelab.maths.signs import (
    agreeing,
    at_least,
    blocks,
    conflicts,
    elected,
    majority,
    share_of_conflicts,
    threshold_keeping,
)
from mergelab.maths.spectral import joint_factors, projected
from mergelab.method import Knob, Layer, Merged, merge_method

NOISE = 1e-6  # an expert's share of a direction below this is rounding: a unit vector of it would be noise
TIE = 1e-9  # renormalised entries closer than this are equal

Drop = Annotated[float, Knob(0, 0.99, "share of the renormalised entries that is pruned", step=0.01)]
Floor = Annotated[float, Knob(0, 0.5, "directions below this share of the strongest are cut", step=0.005)]


@merge_method("DRM-H", paper="2505.23117", fewest=2)
def drm_h(layer: Layer, *, drop: Drop = 0.8, floor: Floor = 0.01) -> Merged:
    """Give all experts one joint basis of output directions, renormalise, prune, elect signs there, average.

    [τ_1 … τ_T] = U S [V_1ᵀ … V_Tᵀ], directions with σ ≤ floor·σ_1 cut;  n_ik = ‖row k of V_iᵀ‖,  s_ik = σ_k n_ik;
    V̂_i = rows of V_iᵀ at length 1, the largest (1 − drop) of all |entries| kept;  row k of V̂_i times s_ik;  elect each
    entry's sign by the sum over experts, mean over those that agree, times w_i;  Δ = U × that.
    Tensors that are not decomposed: sign election and the mean of those that agree, on τ itself.

    U and S come from Σ τ_i τ_iᵀ, and S V_iᵀ = Uᵀ τ_i. Unlike the authors' code: an expert with (almost) no part in a
    direction gets a zero row there (theirs: NaN, or a unit vector of noise) and `drop` counts the other rows alone, so
    that an expert equal to the base changes nothing; the asked number of entries is kept, and those that tie with it.
    """
    return _merged(layer, drop, floor, transposed=False)


@merge_method("DRM-V", paper="2505.23117", fewest=2)
def drm_v(layer: Layer, *, drop: Drop = 0.8, floor: Floor = 0.01) -> Merged:
    """Give all experts one joint basis of input directions: DRM-H on the transposes.

    The deltas are stacked one above the other, so that V is shared instead of U:  [τ_1; …; τ_T] = [U_1; …; U_T] S Vᵀ,
    and the columns of U_i are renormalised, pruned, voted on and averaged as there;  Δ = that × Vᵀ.
    """
    return _merged(layer, drop, floor, transposed=True)


def _merged(layer: Layer, drop: float, floor: float, transposed: bool) -> Merged:
    if not layer.decompose:
        return Merged(*_vote(layer.entries, layer))
    deltas = [delta.T for delta in layer.deltas] if transposed else layer.deltas  # (rows, columns) each
    joint = joint_factors(deltas, lambda values: int((values > floor * values[:1]).sum()))
    basis = joint.vectors  # (rows, k)
    values = joint.values[: basis.shape[1]]  # (k,)
    coordinates = [projected(basis, delta) for delta in deltas]  # (k, columns) each: S V_iᵀ
    lengths = torch.stack([torch.linalg.vector_norm(c, dim=1, dtype=torch.float64) for c in coordinates])  # (expert, k)
    live = lengths > NOISE * values
    kept = _pruned(coordinates, lengths, live, drop)
    voted, opposed = _vote(kept, layer)
    delta = (basis.to(voted) @ voted).to(layer.base.dtype)
    energy = lengths.square().sum(1)
    facts = {
        "joint rank": float(len(values)),
        "nuclear norm cut": float(1 - values.sum() / joint.values.sum()) if len(values) else 0.0,
        "share pruned": tuple(1 - number_of_nonzero(k) / k.numel() if k.numel() else 0.0 for k in kept),
        "share of energy": tuple((energy / _or_one(energy.sum())).tolist()),
        **opposed,
    }
    ownership = (lengths / _or_one(values)).square() * live
    curves = {"joint_singular_values": values, "ownership": ownership}
    return Merged(delta.T if transposed else delta, facts, curves, (joint.road,))


def _pruned(coordinates: Sequence[Tensor], lengths: Tensor, live: Tensor, drop: float) -> list[Tensor]:
    """The coordinates whose renormalised size is among the largest (1 − drop) of all live rows; the others zero.

    Rounding must not tell apart what is equal (a row of one entry always has size 1), hence the margin.
    """
    scales = torch.where(live, lengths, torch.inf).to(coordinates[0])[:, :, None]
    sizes = torch.stack(list(map(torch.div, coordinates, scales)))  # (expert, k, columns), signed
    threshold = threshold_keeping(sizes.abs(), round((1 - drop) * int(live.sum()) * sizes.shape[2])) * (1 - TIE)
    return [
        at_least(size, threshold).mul_(scale) for size, scale in zip(sizes, torch.where(scales < torch.inf, scales, 0))
    ]


def _vote(tensors: Sequence[Tensor], layer: Layer) -> tuple[Tensor, dict[str, float]]:
    """Elect each entry's sign by the sum over experts; weigh the entries that agree, mean over the non-zero ones."""
    total = sum(tensors[1:], tensors[0])
    tie, opposed, mean = majority(total), [], torch.empty_like(total)
    for result, summed, *parts in blocks(mean, total, *tensors):
        stack = torch.stack(parts)  # (expert, entries)
        chosen = layer.weighted(agreeing(stack, elected(summed, tie)))
        torch.div(chosen.sum(0), chosen.sign().abs_().sum(0).clamp_(min=1), out=result)
        opposed.append(conflicts(stack))
    return mean, {"sign conflicts": share_of_conflicts(opposed)}


def _or_one(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)
