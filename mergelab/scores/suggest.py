"""A suggestion of STAR's η from an analysis alone: no prompt is asked and nothing is merged."""

from collections.abc import Callable

import torch

from mergelab.maths.suggestion import restored
from mergelab.report import LayerReport, Report

Rule = Callable[[torch.Tensor, int, tuple[int, int]], float]  # values, experts, (smaller side, larger) -> a share


def in_use(values: torch.Tensor, experts: int, sides: tuple[int, int]) -> float:
    """`restored`, which needs no size of the matrix."""
    return restored(values, experts)


def suggested_eta(report: Report, rule: Rule = in_use) -> int | None:
    """The mean over all decomposed tensors and experts of what the rule would keep of each, in whole percent.

    None where no spectrum is known, or where no expert changes anything.
    """
    shares = [share for layer in report.decomposed for share in _shares(layer, rule)]
    return max(1, min(100, round(100 * sum(shares) / len(shares)))) if shares else None


def _shares(layer: LayerReport, rule: Rule) -> list[float]:
    """For each expert that changes the tensor, the share of its nuclear norm to keep."""
    moving = [values for values in layer.curves.get("singular_values", ()) if len(values)]
    sides = min(layer.shape), max(layer.shape)
    return [rule(torch.tensor(values, dtype=torch.float64), len(moving), sides) for values in moving]
