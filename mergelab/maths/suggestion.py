"""How much of a spectrum is worth keeping, from the spectrum alone. All rules: (k,) descending -> a share of their sum.

`restored` is the one in use; `benchmarks/suggest_eta.py` compares it with the others. side, other: the matrix's smaller
and larger side; experts: how many are averaged.
"""

import math

from torch import Tensor, special


def balanced(values: Tensor, side: int = 0, other: int = 0, experts: int = 1) -> float:
    """The share of the nuclear norm in as many directions as the energy is spread over: r = exp H(σ²/Σσ²).

    The effective rank of Roy & Vetterli (2007), of the energies: what it leaves out is many directions that have
    little each, what it keeps few that have much. No parameter. 1 for a flat spectrum, 0 for a zero matrix.
    """
    if not len(values):
        return 0.0
    energy = values.double().square()
    spread = float(special.entr(energy / energy.sum()).sum().exp())
    return _share(values, round(spread))


def restored(values: Tensor, side: int = 0, other: int = 0, experts: int = 1) -> float:
    """The share at which the merge of so many experts has the size of one expert's change.

    Averaging T unrelated changes leaves a Frobenius norm of 1/√T of theirs; what is kept, scaled back to the old
    nuclear norm, is larger than the change was. The rule lets the second make up for the first. No parameter.
    """
    return _share(values, _rank_growing(values, math.sqrt(experts))) if len(values) else 0.0


def sized(values: Tensor, side: int = 0, other: int = 0, experts: int = 1) -> float:
    """The share at which what is kept, scaled back, is 1.5 times as large as the change: λ = 1.5/T, as it were."""
    return _share(values, _rank_growing(values, 1.5)) if len(values) else 0.0


def elbow(values: Tensor, side: int, other: int = 0, experts: int = 1) -> float:
    """The share at the point where the running sum lies farthest above the straight line of a flat spectrum."""
    if not len(values):
        return 0.0
    mass = values.double().cumsum(0) / values.double().sum()
    line = (values.new_ones(len(values)).cumsum(0) / side).double()
    return _share(values, int((mass - line).argmax()) + 1)


def noise_edge(values: Tensor, side: int, other: int, experts: int = 1) -> float:
    """The share above the optimal hard threshold for white noise of unknown strength (Gavish & Donoho 2014).

    σ > ω(β)·median(σ), β = side/other, ω(β) ≈ 0.56β³ − 0.95β² + 1.82β + 1.43. The median counts the zeros, and where
    it is zero itself (a low rank) all is kept.
    """
    if not len(values):
        return 0.0
    ratio = side / other
    full = values.new_zeros(side)
    full[: len(values)] = values
    threshold = (0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43) * float(full.median())
    return _share(values, int((values > threshold).sum()))


def _rank_growing(values: Tensor, times: float) -> int:
    """The smallest rank that, scaled back to the old nuclear norm, has at most `times` the old Frobenius norm."""
    mass, energy = values.double().cumsum(0), values.double().square().cumsum(0)
    growth = (energy / energy[-1]).sqrt() / (mass / mass[-1])  # falls to 1
    return int((growth > times * (1 + 1e-9)).sum()) + 1


def _share(values: Tensor, rank: int) -> float:
    rank = max(1, min(rank, len(values)))
    return float(values[:rank].double().sum() / values.double().sum())
