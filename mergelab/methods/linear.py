"""The weighted average of the experts' weights: the baseline of every paper (model soups, arXiv 2203.05482)."""

from typing import Annotated

from mergelab.errors import MergeError
from mergelab.method import Layer, Merged, Switch, merge_method


@merge_method("Average", paper="2203.05482", entrywise="always", memory=2)
def linear(
    layer: Layer,
    *,
    normalize: Annotated[bool, Switch("divide by the sum of the weights")] = True,
) -> Merged:
    """Average the experts' weights.

    W = Σ w_i W_i / Σ w_i;  without `normalize`, W = Σ w_i W_i. The same as mergekit's `linear`.
    """
    total = float(layer.weights.sum())
    if not normalize:
        return Merged(layer.sum + (total - 1) * layer.base)
    if abs(total) < 1e-8:
        raise MergeError("The weights of an average add up to 0. Change a weight, or set 'normalize: false'.")
    return Merged(layer.sum / total)
