"""The Karcher mean of models: the nearest point to all of them on the sphere (arXiv 2603.04972)."""

from typing import Annotated

import torch

from mergelab.maths.sphere import cosines, karcher_mean, whole_gram
from mergelab.method import Knob, Layer, Merged, Switch, merge_method


@merge_method("Karcher mean", paper="2603.04972", memory=5)
def karcher(
    layer: Layer,
    *,
    max_iter: Annotated[float, Knob(1, 100, "steps towards the mean, at most", step=1)] = 10.0,
    tol: Annotated[float, Knob(1e-9, 1e-2, "an angle that is small enough to stop, in radians")] = 1e-5,
    count_base: Annotated[bool, Switch("the base is one of the models, as where a mergekit recipe names it")] = True,
) -> Merged:
    """Find the point of the sphere from which the squared angles to all models' weights are least in sum.

    u_i = W_i / ‖W_i‖;  m ← exp_m(Σ α_i log_m(u_i)) until the step is below `tol`;  W = (Σ α_i ‖W_i‖) m,  α_i equal.

    As mergekit's `karcher`, to which a base that is named in the recipe is one more model; `count_base: false` leaves
    it out. A model of weight w is W_0 + w τ. The mean is a combination of the W_i, so only their Gram matrix is
    iterated on. Models that point the same way to within `tol` are averaged.
    """
    deltas = layer.weighted(layer.dense)
    if count_base:
        deltas = torch.cat([torch.zeros_like(layer.base)[None], deltas])
    products = whole_gram(layer.base + deltas)
    count, lengths = len(deltas), products.diagonal().sqrt()
    valid = lengths > tol
    between = cosines(products)[valid][:, valid]
    facts = {"widest angle": float(between.min().acos().rad2deg()) if len(between) else 0.0}
    if not len(between) or between.min().acos() < tol:
        return Merged(deltas.mean(0), facts)
    shares = torch.full_like(lengths[valid], 1 / len(between))
    scale = torch.zeros_like(lengths)
    scale[valid] = lengths.sum() / count * karcher_mean(between, shares, int(max_iter), tol) / lengths[valid]
    delta = torch.einsum("e,e...->...", scale.to(deltas), deltas) + (scale.sum() - 1).to(deltas) * layer.base
    return Merged(delta, facts)
