"""Multi-SLERP: the barycentre of several models' changes on a sphere (MergeKit, arXiv 2403.13257)."""

from collections.abc import Sequence
from typing import Annotated

import torch

from mergelab.maths.signs import NO_MASS
from mergelab.maths.sphere import whole_gram
from mergelab.method import Layer, Merged, Switch, merge_method
from mergelab.methods.nuslerp import FromZero


def _no_mean(weights: Sequence[float], normalize_weights: bool, from_zero: bool) -> str:
    if not normalize_weights or len(weights) < 2 or abs(sum(weights)) >= NO_MASS:
        return ""
    return "The weights of Multi-SLERP add up to 0. Change a weight, or set 'normalize_weights: false'."


@merge_method("Multi-SLERP", paper="2403.13257", memory=3, refusal=_no_mean)
def multislerp(
    layer: Layer,
    *,
    normalize_weights: Annotated[bool, Switch("divide the weights by their sum")] = True,
    from_zero: FromZero = False,
) -> Merged:
    """Average the directions of the changes on the unit sphere, and their lengths apart from that.

    u_i = τ_i / ‖τ_i‖;  m = Σ w_i u_i, at length 1;  v = Σ w_i (u_i − ⟨u_i, m⟩ m), a tangent at m;
    Δ = (Σ w_i ‖τ_i‖) · (cos ‖v‖ · m + sin ‖v‖ · v / ‖v‖).

    As mergekit's `multislerp` with a base model, where the weights add up to 1 unless `normalize_weights` is off. One
    model alone stays what it is, whatever its weight. Changes that cancel out have no mean direction: mergekit stops
    there if they are three or more; here their weighted sum is taken, as it does for two. `from_zero`: W_i in place of
    τ_i, and W for Δ, as mergekit does without a base model.
    """
    if len(layer.deltas) == 1:
        return Merged(layer.dense[0])
    total = float(layer.weights.sum())
    weights = layer.weights.double() / (total if normalize_weights else 1)
    models = layer.dense + layer.base if from_zero else layer.dense
    origin = layer.base if from_zero else 0
    products = whole_gram(models)
    lengths = products.diagonal().sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0)
    units = products * inverse[:, None] * inverse
    share = weights * (lengths > 0)
    length = (share @ units @ share).clamp(min=0).sqrt()
    if length < 1e-8:
        return Merged(torch.einsum("e,e...->...", weights.to(models), models) - origin)
    mean = share / length
    tangent = share - (share @ units @ mean) * mean
    size = (tangent @ units @ tangent).clamp(min=0).sqrt()
    point = size.cos() * mean + torch.sinc(size / torch.pi) * tangent
    scale = (weights * lengths).sum() * point * inverse
    delta = torch.einsum("e,e...->...", scale.to(models), models) - origin
    return Merged(delta, {"length of the mean": float(length)})
