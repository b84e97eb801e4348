"""SLERP: from the base to another model along the arc between them (Shoemake 1985; as in MergeKit, 2403.13257)."""

from typing import Annotated

import torch

from mergelab.maths.sphere import arc, cosines, whole_gram
from mergelab.method import Knob, Layer, Merged, merge_method

STRAIGHT = 0.9995  # beyond this cosine the arc is a line


@merge_method("SLERP", paper="2403.13257", most=1)
def slerp(
    layer: Layer,
    *,
    t: Annotated[float, Knob(0, 1, "how far to go from the base (0) to the model (1)", step=0.01)] = 0.5,
) -> Merged:
    """Go from the base to one other model along the arc between them, tensor by tensor.

    cos θ = ⟨W_0, W_1⟩ / (‖W_0‖ ‖W_1‖);  W = (sin((1 − t)θ) W_0 + sin(tθ) W_1) / sin θ;  where |cos θ| > 0.9995, the
    line (1 − t) W_0 + t W_1.

    As mergekit's `slerp`: the base is one of the two models, whether or not a recipe lists it among them. `t` is ½
    where a recipe is silent (mergekit: an error). A model of weight w is W_0 + w τ. A fine-tuned model is so near to
    its base that the arc nearly always is the line; NuSLERP goes from one model's change to another's instead.
    """
    delta = layer.weighted(layer.dense)[0]
    cosine = cosines(whole_gram(torch.stack([layer.base, layer.base + delta])))[0, 1]
    first, second = arc(cosine, t, cosine.abs() > STRAIGHT)
    merged = (first + second - 1).to(delta) * layer.base + second.to(delta) * delta
    return Merged(merged, {"cosine with the base": float(cosine)})
