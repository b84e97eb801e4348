"""Task arithmetic: add what fine-tuning changed (Ilharco et al., ICLR 2023, arXiv 2212.04089)."""

from typing import Annotated

from mergelab.method import Knob, Layer, Merged, merge_method


@merge_method("Task arithmetic", paper="2212.04089", entrywise="always")
def task_arithmetic(
    layer: Layer,
    *,
    lambda_: Annotated[float, Knob(0, 3, "scale of the summed deltas", step=0.05, start=0.4)] = 1.0,
) -> Merged:
    """Add the sum of all deltas to the base, scaled by λ.

    W = W_0 + λ Σ w_i τ_i.  λ is 1 where a recipe is silent, as in mergekit; the paper finds 0.3–0.4 good for many
    experts.
    """
    return Merged(lambda_ * layer.sum)
