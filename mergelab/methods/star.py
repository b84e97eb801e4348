"""STAR: Spectral Truncation and Rescale (Lee et al., NAACL 2025, arXiv 2502.10339)."""

from typing import Annotated

from mergelab.maths.spectral import Factors, effective_rank, rank_keeping, total
from mergelab.method import Knob, Layer, Merged, Switch, merge_method


@merge_method("STAR", paper="2502.10339", entrywise="tables", rowwise=True, memory=2)
def star(
    layer: Layer,
    *,
    eta: Annotated[float, Knob(1, 100, "% of each delta's nuclear norm that is kept", step=1)] = 40.0,
    rescale: Annotated[bool, Switch("scale what is kept back to the full nuclear norm")] = True,
) -> Merged:
    """Keep each delta's strongest singular directions, scale them back to the full nuclear norm, average.

    With τ = U S Vᵀ:  r = min{r : Σ_{k≤r} σ_k ≥ η/100 · Σ σ_k},  c = Σ σ_k / Σ_{k≤r} σ_k,  τ' = c · U_r S_r V_rᵀ,
    Δ = (1/T) Σ w_i τ'_i.  Tensors that are not decomposed: the weighted mean of τ.

    Unlike the authors' code: every matrix is truncated, not LoRA's alone; the spectrum is exact, not a randomised
    sketch; a delta of zero stays zero (theirs: NaN). `rescale: false` shows truncation alone.
    """
    if not layer.decompose:
        return Merged(layer.sum / len(layer.deltas))
    factors = layer.factors(lambda values: rank_keeping(values, eta / 100))
    ranks = [rank_keeping(f.values, eta / 100) for f in factors]
    gains = [_gain(f, r) if rescale else 1.0 for f, r in zip(factors, ranks)]
    shares = [w * gain / len(factors) for w, gain in zip(layer.weights.tolist(), gains)]
    delta = total(layer.leading(factors, ranks, shares)).to(layer.base.dtype)
    facts = {
        "rank kept": tuple(map(float, ranks)),
        "rank kept, share": tuple(r / len(f.vectors) for f, r in zip(factors, ranks)),
        "gain": tuple(gains),
        "energy kept": tuple(_energy(f, r) for f, r in zip(factors, ranks)),
        "effective rank": tuple(effective_rank(f.values) for f in factors),
        "largest singular value": tuple(float(f.values[0]) if len(f.values) else 0.0 for f in factors),
    }
    return Merged(delta, facts, roads=tuple(f.road for f in factors))


def _gain(factors: Factors, rank: int) -> float:
    return float(factors.values.sum() / factors.values[:rank].sum()) if rank else 1.0


def _energy(factors: Factors, rank: int) -> float:
    energy = factors.values.square()
    return float(energy[:rank].sum() / energy.sum()) if rank else 1.0
