"""How much of a spectrum is worth keeping, from the spectrum alone."""

import math

from torch import Tensor


def restored(values: Tensor, experts: int = 1) -> float:
    """The share of the nuclear norm at which the merge of so many experts has the size of one expert's change.

    values: (k,) descending. Averaging T unrelated changes leaves a Frobenius norm of 1/√T of theirs; what is kept,
    scaled back to the old nuclear norm, is larger than the change was. The rule lets the second make up for the first.
    No parameter. (`benchmarks/suggest_eta.py` compares it with others.)
    """
    return kept(values, rank_growing(values, math.sqrt(experts))) if len(values) else 0.0


def rank_growing(values: Tensor, times: float) -> int:
    """The smallest rank that, scaled back to the old nuclear norm, has at most `times` the old Frobenius norm."""
    mass, energy = values.double().cumsum(0), values.double().square().cumsum(0)
    growth = (energy / energy[-1]).sqrt() / (mass / mass[-1])  # falls to 1
    return int((growth > times * (1 + 1e-9)).sum()) + 1


def kept(values: Tensor, rank: int) -> float:
    """The share of the nuclear norm in the leading `rank` values, of at least one and at most all."""
    rank = max(1, min(rank, len(values)))
    return float(values[:rank].double().sum() / values.double().sum())
