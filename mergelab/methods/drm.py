"""DRM: Decom-Renorm-Merge (Chaichana et al., arXiv 2505.23117), in its two directions."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from mergelab.maths.inner import is_unmoved
from mergelab.maths.joint import Joint, joint_directions
from mergelab.maths.selection import number_of_nonzero, within
from mergelab.maths.signs import (
    at_least,
    blocks,
    conflicts,
    elected,
    majority,
    sizes_agreeing,
    threshold_keeping,
    thresholds_keeping,
)
from mergelab.maths.spectral import Delta, LowRank
from mergelab.method import Knob, Layer, Merged, Whole, merge_method

NOISE = 1e-6  # an expert's share of a direction below this is rounding: a unit vector of it would be noise
NEAR = 3e-5  # float32 is sure which of two renormalised entries is larger where they differ by more than this
TIE = 1e-9  # renormalised entries closer than this are equal

Drop = Annotated[float, Knob(0, 0.99, "share of the renormalised entries that is pruned", step=0.01)]
Floor = Annotated[float, Knob(0, 0.5, "directions below this share of the strongest are cut", step=0.005)]


def prevailing(whole: Whole, **settings: Any) -> Tensor:
    """The sign that most entries of the sum of all deltas have, for a tensor that is not decomposed."""
    return majority(_sum(part.entries) for part in whole.walk())


@merge_method("DRM-H", paper="2505.23117", fewest=2, entrywise="tables", survey=prevailing)
def drm_h(layer: Layer, *, drop: Drop = 0.8, floor: Floor = 0.01) -> Merged:
    """Give all experts one joint basis of output directions, renormalise, prune, elect signs there, average.

    [τ_1 … τ_T] = U S [V_1ᵀ … V_Tᵀ], directions with σ ≤ floor·σ_1 cut;  n_ik = ‖row k of V_iᵀ‖,  s_ik = σ_k n_ik;
    V̂_i = rows of V_iᵀ at length 1, the largest (1 − drop) of all |entries| kept;  row k of V̂_i times s_ik;  elect each
    entry's sign by the sum over experts, mean over those that agree, times w_i;  Δ = U × that.
    Tensors that are not decomposed: sign election and the mean of those that agree, on τ itself.

    U and S come from Σ τ_i τ_iᵀ, and S V_iᵀ = Uᵀ τ_i (V and S from all τ_iᵀ τ_j, where those make a smaller matrix).
    Unlike the authors' code: an expert with (almost) no part in a direction gets a zero row there (theirs: NaN, or a
    unit vector of noise) and `drop` counts the other rows alone, so that an expert equal to the base changes nothing;
    the asked number of entries is kept, and those that tie with it.
    """
    return _merged(layer, drop, floor, transposed=False)


@merge_method("DRM-V", paper="2505.23117", fewest=2, entrywise="tables", survey=prevailing)
def drm_v(layer: Layer, *, drop: Drop = 0.8, floor: Floor = 0.01) -> Merged:
    """Give all experts one joint basis of input directions: DRM-H on the transposes.

    The deltas are stacked one above the other, so that V is shared instead of U:  [τ_1; …; τ_T] = [U_1; …; U_T] S Vᵀ,
    and the columns of U_i are renormalised, pruned, voted on and averaged as there;  Δ = that × Vᵀ.
    """
    return _merged(layer, drop, floor, transposed=True)


def _merged(layer: Layer, drop: float, floor: float, transposed: bool) -> Merged:
    if not layer.decompose:
        delta, opposed = _vote(layer.entries, layer, layer.seen)
        return Merged(delta, counts={"sign conflicts": opposed})
    deltas = _thin_where_others_are(layer.deltas)
    deltas = [delta.T for delta in deltas] if transposed else deltas  # (rows, columns) each
    joint = joint_directions(deltas, lambda values: int((values > floor * values[:1]).sum()))
    values = joint.values  # (k,)
    rights = joint.rights()  # V_iᵀ, (expert, k, columns)
    lengths = torch.linalg.vector_norm(rights, dim=2, keepdim=True)  # (expert, k, 1): n_ik
    live = lengths > NOISE
    units = rights.div_(torch.where(live, lengths, torch.inf))  # V̂_i, in place
    strengths = lengths * values[:, None]  # s_ik
    count = round((1 - drop) * int(live.sum()) * units.shape[2])
    kept = _pruned(units, count, joint).mul_(strengths.to(units))
    voted, opposed = _vote(kept, layer, majority(map(_sum, blocks(*kept))))
    delta = joint.combined(voted)
    energy = strengths.square().sum((1, 2))
    facts = {
        "share of energy": tuple((energy / _or_one(energy.sum())).tolist()),
        "share pruned": tuple(map(_share_pruned, kept, live)),
        "joint rank": float(len(values)),
        "nuclear norm cut": float(1 - values.sum() / joint.spectrum.sum()) if len(values) else 0.0,
    }
    ownership = (lengths.square() * live).squeeze(2)
    curves = {"joint_singular_values": joint.spectrum, "ownership": ownership}
    counts = {"sign conflicts": opposed}
    return Merged(delta.T if transposed else delta, facts, curves, (joint.road,), counts)


def _thin_where_others_are(deltas: Sequence[Delta]) -> Sequence[Delta]:
    """The deltas; beside thin ones, what an expert leaves alone is a product of no columns: no matrix is filled."""
    if not any(isinstance(delta, LowRank) for delta in deltas):
        return deltas

    def thin(delta: Delta) -> Delta:
        rows, columns = delta.shape
        return LowRank(delta.new_zeros(rows, 0), delta.new_zeros(0, columns)) if is_unmoved(delta) else delta

    return [delta if isinstance(delta, LowRank) else thin(delta) for delta in deltas]


def _share_pruned(kept: Tensor, live: Tensor) -> float:
    """Of one expert's entries in the rows that it has a part in, the share that is gone. kept: (k, columns)"""
    count = int(live.sum()) * kept.shape[1]
    return 1 - number_of_nonzero(kept) / count if count else 0.0


def _pruned(units: Tensor, count: int, joint: Joint) -> Tensor:
    """The `count` largest entries of V̂ (expert, k, columns), and those that tie; the others zero. In place.

    Rounding must not tell apart what is equal (a row of one entry always has size 1), hence the margin. Float32 must
    not decide what float64 would decide otherwise: entries near the threshold are computed once more.
    """
    threshold = float(thresholds_keeping(lambda: blocks(units), [count], units.numel())[0])
    if units.dtype == torch.float32 and 0 < threshold < torch.inf:
        sizes = (part.abs() for (part,) in blocks(units))
        above, near = within(sizes, threshold * (1 - NEAR), threshold * (1 + NEAR))
        exact = _sizes_in_float64(near, units.shape, joint)
        last = threshold_keeping(exact, count - above) * (1 - TIE)
        units.view(-1)[near[exact < last]] = 0
        threshold *= 1 - NEAR
    for (part,) in blocks(units):
        part.copy_(at_least(part, threshold * (1 - TIE)))
    return units


def _sizes_in_float64(index: Tensor, shape: torch.Size, joint: Joint) -> Tensor:
    """The sizes of some entries of V̂, by flat index, in float64."""
    expert, row, column = index // shape[1:].numel(), index // shape[2] % shape[1], index % shape[2]
    sizes = torch.zeros(len(index), dtype=torch.float64, device=index.device)
    for i in range(shape[0]):
        mine = expert == i
        sizes[mine] = joint.exact_units(i, row[mine], column[mine]).abs()
    return sizes


def _vote(tensors: Sequence[Tensor], layer: Layer, tie: Tensor) -> tuple[Tensor, Tensor]:
    """Elect each entry's sign by the sum over experts; weigh the entries that agree, mean over the non-zero ones.

    tie: the sign of a sum that is zero. What comes second counts sign conflicts, as `conflicts`.
    """
    opposed, mean = torch.zeros(2, dtype=torch.float64), tensors[0].new_empty(tensors[0].shape)
    for result, *parts in blocks(mean, *tensors):
        stack = torch.stack(parts)  # (expert, entries)
        sign = elected(_sum(parts), tie.to(stack))
        sizes = layer.weighted(sizes_agreeing(stack, sign))
        total = sizes.sum(0).mul_(sign)
        torch.div(total, sizes.sign_().abs_().sum(0).clamp_(min=1), out=result)
        opposed += conflicts(stack).cpu()
    return mean, opposed


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0])


def _or_one(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)
