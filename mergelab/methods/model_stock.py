"""Model stock: how far to trust the mean of fine-tuned models, from the angle between them (arXiv 2403.19522)."""

from typing import Annotated

import torch

from mergelab.maths.sphere import cosines, gram
from mergelab.method import Layer, Merged, Switch, merge_method


@merge_method("Model stock", paper="2403.19522", fewest=2, memory=3)
def model_stock(
    layer: Layer,
    *,
    filter_wise: Annotated[bool, Switch("an angle for each row, not one for the whole tensor")] = False,
) -> Merged:
    """Go from the base towards the mean of the models, the further the smaller the angle between their changes.

    c = the mean of ⟨τ_i, τ_j⟩ / (‖τ_i‖ ‖τ_j‖) over all pairs;  t = T c / (1 + (T − 1) c);  Δ = t · (1/T) Σ τ_i.

    As mergekit's `model_stock`: the product of two lengths is taken to be at least 10⁻⁶, and t = 0 where 1 + (T − 1) c
    vanishes. A model of weight w is W_0 + w τ.
    """
    deltas, count = layer.weighted(layer.dense), len(layer.deltas)
    rowed = filter_wise and layer.base.dim() > 1
    rows = deltas.flatten(1, -2) if rowed else deltas.reshape(count, 1, -1)
    pairs = torch.triu_indices(count, count, 1)
    cosine = cosines(gram(rows), least=1e-6)[:, pairs[0], pairs[1]].mean(1)  # (row,)
    below = 1 + (count - 1) * cosine
    t = torch.where(below.abs() < 1e-6, 0, count * cosine / torch.where(below.abs() < 1e-6, 1, below))
    delta = t.to(deltas)[:, None] * rows.mean(0)
    return Merged(delta.reshape(layer.base.shape), {"trust in the mean": float(t.mean()) if len(t) else 0.0})
