"""DRM: Decom-Renorm-Merge (Chaichana et al., arXiv 2505.23117), in its two directions."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.signs import agreeing, conflict_share, elected, threshold_keeping
from mergelab.maths.spectral import joint_factors
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
        return Merged(_vote(layer, layer.dense), {"sign conflicts": conflict_share(layer.dense)})
    deltas = (layer.dense.mT if transposed else layer.dense).double()  # (expert, rows, columns)
    joint = joint_factors(deltas)
    rank = int((joint.values > floor * joint.values[:1]).sum()) if len(joint.values) else 0
    basis, values = joint.vectors[:, :rank], joint.values[:rank]  # (rows, k), (k,)
    coordinates = basis.T @ deltas  # (expert, k, columns): S V_iᵀ
    lengths = coordinates.norm(dim=2, keepdim=True)  # (expert, k, 1): s_ik
    live = lengths > NOISE * values[:, None]
    kept = _pruned(coordinates, lengths, live, drop)
    delta = (basis @ _vote(layer, kept)).to(layer.base)
    facts = {
        "joint rank": float(rank),
        "nuclear norm cut": float(1 - values.sum() / joint.values.sum()) if rank else 0.0,
        "share pruned": tuple(1 - float((k != 0).double().mean()) if rank else 0.0 for k in kept),
        "sign conflicts": conflict_share(kept),
        "share of energy": tuple((lengths.square().sum((1, 2)) / _or_one(lengths.square().sum())).tolist()),
    }
    ownership = (lengths.squeeze(2) / _or_one(values)).square() * live.squeeze(2)
    return Merged(
        delta.T if transposed else delta,
        facts,
        {"joint_singular_values": values, "ownership": ownership},
        (joint.road,),
    )


def _pruned(coordinates: Tensor, lengths: Tensor, live: Tensor, drop: float) -> Tensor:
    """The coordinates whose renormalised size is among the largest (1 − drop) of all live rows; the others zero.

    Rounding must not tell apart what is equal (a row of one entry always has size 1), hence the margin.
    """
    size = torch.where(live, coordinates.abs() / torch.where(live, lengths, 1), 0)
    count = round((1 - drop) * int(live.sum()) * coordinates.shape[2])
    return torch.where(live & (size >= threshold_keeping(size, count) * (1 - TIE)), coordinates, 0)


def _vote(layer: Layer, stack: Tensor) -> Tensor:
    """Elect each entry's sign by the sum over experts; weigh the entries that agree, mean over the non-zero ones."""
    chosen = layer.weighted(agreeing(stack, elected(stack.sum(0), tie="majority")))
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)


def _or_one(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)
