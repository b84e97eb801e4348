"""The weighted average of the experts' weights: the baseline of every paper (model soups, arXiv 2203.05482)."""

from collections.abc import Sequence
from typing import Annotated

from mergelab.maths.signs import NO_MASS
from mergelab.method import Layer, Merged, Switch, merge_method


def _no_average(weights: Sequence[float], normalize: bool) -> str:
    if not normalize or abs(sum(weights)) >= NO_MASS:
        return ""
    return "The weights of an average add up to 0. Change a weight, or set 'normalize: false'."


@merge_method("Average", paper="2203.05482", entrywise="always", memory=2, refusal=_no_average)
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
    return Merged(layer.sum / total)
