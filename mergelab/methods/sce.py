"""SCE: select by variance, weigh by energy, erase the minority (FuseChat, Wan et al. 2024, arXiv 2408.07990)."""

from typing import Annotated

import torch
from torch import Tensor

from mergelab.maths.signs import agreeing, conflict_share, elected, threshold_keeping
from mergelab.maths.sphere import lengths
from mergelab.method import Knob, Layer, Merged, merge_method


@merge_method("SCE", paper="2408.07990", memory=5)
def sce(
    layer: Layer,
    *,
    select_topk: Annotated[
        float, Knob(0, 1, "share of the entries that is kept: where experts differ", step=0.01)
    ] = 1.0,
) -> Merged:
    """Keep the entries in which the experts differ most, weigh each expert by its energy, drop minority signs.

    Of the entries with any variance over the experts, the `select_topk` with the largest one are kept;
    η_i = mean(τ_i²) / Σ_k mean(τ_k²);  γ = sign(Σ τ_i), a tie counts as +;  Δ = Σ_{agree} η_i τ_i / Σ_{agree} η_i.

    As mergekit's `sce`: equal η where the energies add up to less than 10⁻⁶, and 10⁻⁶ at least below the line. Entries
    that tie with the last kept are kept too. An expert of weight w is W_0 + w τ.
    """
    deltas = layer.weighted(layer.dense)
    if not layer.base.numel():
        return Merged(torch.zeros_like(layer.base))
    if select_topk < 1:
        deltas = torch.where(_most_varied(deltas, select_topk), deltas, 0)
    energy = lengths(deltas).square() / layer.base.numel()
    shares = energy / energy.sum() if energy.sum() >= 1e-6 else torch.full_like(energy, 1 / len(energy))
    chosen = agreeing(deltas, elected(deltas.sum(0), tie="plus"))
    column = shares.to(deltas).view(-1, *[1] * layer.base.dim())
    delta = (column * chosen).sum(0) / (column * (chosen != 0)).sum(0).clamp(min=1e-6)
    facts = {"share of energy": tuple(shares.tolist()), "sign conflicts": conflict_share(deltas)}
    return Merged(delta, facts)


def _most_varied(deltas: Tensor, share: float) -> Tensor:
    variance = deltas.var(0, unbiased=False)
    count = int(int((variance != 0).sum()) * share)
    return (variance >= threshold_keeping(variance, count)) & (variance > 0)
