"""A suggestion of STAR's η from an analysis alone: no prompt is asked and nothing is merged."""

from collections.abc import Callable

import torch
from torch import Tensor

from mergelab.maths.suggestion import sized
from mergelab.report import Report

Rule = Callable[[Tensor, int, int], float]


def suggested_eta(report: Report, rule: Rule = sized) -> int | None:
    """The mean over all decomposed tensors and experts of what the rule would keep of each, in whole percent.

    None where no spectrum is known, or where no expert changes anything.
    """
    shares = []
    for layer in report.decomposed:
        for values in layer.curves.get("singular_values", ()):
            if len(values):
                spectrum = torch.tensor(values, dtype=torch.float64)
                shares.append(rule(spectrum, min(layer.shape), max(layer.shape)))
    return max(1, min(100, round(100 * sum(shares) / len(shares)))) if shares else None
