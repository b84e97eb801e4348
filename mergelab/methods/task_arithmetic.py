"""Task arithmetic: add what fine-tuning changed (Ilharco et al., ICLR 2023, arXiv 2212.04089)."""

from typing import Annotated

from mergelab.maths.signs import NO_MASS
from mergelab.method import Knob, Layer, Merged, Switch, merge_method


@merge_method("Task arithmetic", paper="2212.04089", entrywise="always", idle=("density", "rescale"), memory=2)
def task_arithmetic(
    layer: Layer,
    *,
    lambda_: Annotated[float, Knob(0, 3, "scale of the summed deltas", step=0.05, start=0.4)] = 1.0,
    normalize: Annotated[bool, Switch("divide by the sum of the weights")] = False,
) -> Merged:
    """Add the sum of all deltas to the base, scaled by λ.

    W = W_0 + λ Σ w_i τ_i;  with `normalize`, λ is divided by Σ w_i where that is not zero.  λ is 1 where a recipe is
    silent, as in mergekit; the paper finds 0.3–0.4 good for many experts. mergekit takes a `density` and a `rescale`
    here, too, and uses neither.
    """
    total = float(layer.weights.sum())
    return Merged(lambda_ / (total if normalize and abs(total) >= NO_MASS else 1) * layer.sum)
