"""NearSwap: take over what another model changed only a little (as in MergeKit, arXiv 2403.13257)."""

from typing import Annotated

from mergelab.method import Knob, Layer, Merged, merge_method


@merge_method("NearSwap", paper="2403.13257", most=1, memory=3)
def nearswap(
    layer: Layer,
    *,
    t: Annotated[float, Knob(0, 1, "the size of a change that is still taken over whole", step=0.0001)] = 0.0001,
) -> Merged:
    """Take another model's entries where they are near to the base's, and go a step of t towards them elsewhere.

    a = min(1, t / max(|τ|, 10⁻⁶));  Δ = a τ:  whole where |τ| ≤ t, else a step of length t.

    As mergekit's `nearswap`; t = 0.0001 where a recipe is silent, as in the model that brought it up. A model of
    weight w is W_0 + w τ.
    """
    delta = layer.weighted(layer.dense)[0]
    share = (t / delta.abs().clamp(min=1e-6)).clamp(max=1)
    return Merged(share * delta, {"entries kept": float((share == 1).double().mean()) if delta.numel() else 0.0})
