"""NuSLERP: the arc between the changes of two models, by their weights (MergeKit, arXiv 2403.13257)."""

from typing import Annotated

import torch

from mergelab.maths.sphere import arc, cosines, gram
from mergelab.method import Layer, Merged, Switch, merge_method

FromZero = Annotated[bool, Switch("weights instead of changes, as where a mergekit recipe names no base")]
PARALLEL = 1e-16  # of 1 − cos²: below it there is no one arc


@merge_method("NuSLERP", paper="2403.13257", fewest=2, most=2, memory=3)
def nuslerp(
    layer: Layer,
    *,
    nuslerp_flatten: Annotated[bool, Switch("one angle for the whole tensor, not one for each row")] = True,
    nuslerp_row_wise: Annotated[bool, Switch("without flatten: an angle for each column of entries")] = False,
    from_zero: FromZero = False,
) -> Merged:
    """Take the point of the arc between two models' changes that their weights say.

    t = w_2 / (w_1 + w_2), or ½ where the weights add up to zero;  cos θ = ⟨τ_1, τ_2⟩ / (‖τ_1‖ ‖τ_2‖);
    Δ = (sin((1 − t)θ) τ_1 + sin(tθ) τ_2) / sin θ;  where the two are parallel, the line.

    As mergekit's `nuslerp` with a base model. Without `nuslerp_flatten` each vector along the last dimension has its
    own θ; with `nuslerp_row_wise`, too, each along the first. `from_zero`: W_i in place of τ_i, and W for Δ, as
    mergekit does without a base model.
    """
    if not layer.base.numel():
        return Merged(torch.zeros_like(layer.base))
    w = layer.weights
    t = 0.5 if w.sum().abs() < 1e-6 else float(w[1] / w.sum())
    along = 0 if nuslerp_row_wise else -1
    whole = nuslerp_flatten or layer.base.dim() < 2
    models = layer.dense + layer.base if from_zero else layer.dense
    rows = models.reshape(2, 1, -1) if whole else models.movedim(along if along < 0 else along + 1, -1)
    one, other = rows[0], rows[1]
    cosine = cosines(gram(rows.reshape(2, -1, rows.shape[-1])))[:, 0, 1].view(*one.shape[:-1], 1)
    first, second = arc(cosine, t, 1 - cosine.square() <= PARALLEL)
    delta = first.to(one) * one + second.to(one) * other
    delta = delta.reshape(layer.base.shape) if whole else delta.movedim(-1, along)
    return Merged(delta - layer.base if from_zero else delta, {"angle": float(torch.acos(cosine).mean().rad2deg())})
