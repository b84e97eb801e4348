"""Mean and variance of each channel, gathered chunk by chunk; the scale and shift that take one pair to another.

Everything is summed in float64 about the mean of its own chunk (Chan, Golub & LeVeque 1983), so that a large mean costs
no digits and the way in which rows are cut into chunks does not show. Variances are biased (divided by n).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MODES = {
    "affine": "scale and shift: the expert's mean and standard deviation",
    "rms": "scale alone, by the root of the mean square: for models without biases",
    "shift": "shift alone: the expert's mean",
}
_DEAD = 1e-3  # a channel whose deviation is below this share of the median one says nothing
_LEAST = 1e-6  # … or below this
_CHUNK = 1 << 20  # numbers that are float64 at a time


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of each channel: (channel,) float64."""

    count: int
    mean: Tensor
    squares: Tensor  # Σ (x - mean)²

    @property
    def var(self) -> Tensor:
        """The biased variance, (channel,)."""
        return self.squares / max(self.count, 1)

    @property
    def std(self) -> Tensor:
        """The standard deviation, (channel,)."""
        return self.var.sqrt()

    @property
    def rms(self) -> Tensor:
        """The root of the mean square, (channel,)."""
        return (self.var + self.mean.square()).sqrt()

    @property
    def finite(self) -> bool:
        """Whether no channel has seen NaN or an infinity."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.squares).all())

    def joined(self, other: "Moments") -> "Moments":
        """The moments of both samples together."""
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Moments(count, mean, squares)


@dataclass(frozen=True)
class Affine:
    """y -> scale·y + shift, each (channel,) float64; how many channels were dead, clamped, or not finite."""

    scale: Tensor
    shift: Tensor
    dead: int = 0
    clamped: int = 0
    skipped: int = 0


def nothing(channels: int) -> Moments:
    """The moments of an empty sample."""
    return Moments(0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))


def moments(values: Tensor, dim: int = -1, mask: Tensor | None = None) -> Moments:
    """The moments of each channel over all other axes.

    values: any shape, channels along `dim`. mask: bool, of the leading axes of `values` once its channels stand last;
    where it is False, nothing counts.
    """
    rows = rows_of(values, dim, mask)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    found = nothing(rows.shape[1])
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].double()
        mean = chunk.mean(0)
        found = found.joined(Moments(len(chunk), mean.cpu(), (chunk - mean).square().sum(0).cpu()))
    return found


def rows_of(values: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """The values as (row, channel), masked rows left out. Arguments as of `moments`."""
    last = values.movedim(dim, -1)
    if mask is None:
        return last.reshape(-1, last.shape[-1])
    return last[mask.to(last.device)].reshape(-1, last.shape[-1])


def mean_of(several: Sequence[Moments], weights: Sequence[float] | None = None) -> Moments:
    """The goal of REPAIR for any number of experts: the mean of their means, and of their standard deviations.

    weights: of the experts in the merge, at least 0 each and not all 0; None: all alike.
    """
    shares = torch.tensor(weights or [1.0] * len(several), dtype=torch.float64)
    shares = shares / shares.sum()
    mean = shares @ torch.stack([one.mean for one in several])
    std = shares @ torch.stack([one.std for one in several])
    count = sum(one.count for one in several)
    return Moments(count, mean, std.square() * count)


def dead(found: Moments) -> Tensor:
    """Channels that hardly vary: below a thousandth of the median deviation, or a millionth. bool (channel,)"""
    return found.std <= max(_DEAD * float(found.std.median()), _LEAST)


def affine(goal: Moments, found: Moments, mode: str = "affine", *, clamp: float = 10.0, prior: float = 0.0) -> Affine:
    """What gives values with the moments `found` those of the goal.

    affine: s = σ_goal / σ_found, t = μ_goal - s μ_found. rms: s = rms_goal / rms_found, t = 0. shift: s = 1.

    A channel dead in `found` is only shifted (in rms: left alone). One dead in the goal is flattened to the goal's
    mean, unclamped. Other scales are held within 1/clamp … clamp. prior: a number of rows; s is drawn towards 1 as
    s^(n/(n+prior)), for small samples. No eps stands in any quotient.
    """
    ok = _finite(goal) & _finite(found)
    size = (lambda one: one.rms) if mode == "rms" else (lambda one: one.std)
    silent = size(found) <= _LEAST if mode == "rms" else dead(found)
    flat = torch.zeros_like(silent) if mode == "rms" else dead(goal)
    raw = size(goal) / size(found).clamp(min=_LEAST)
    raw = raw ** (found.count / (found.count + prior)) if prior else raw
    held = torch.where(flat, raw, raw.clamp(1 / clamp, clamp))
    scale = torch.where(silent | ~ok, 1.0, held) if mode != "shift" else torch.ones_like(raw)
    shift = torch.where(ok, goal.mean - scale * found.mean, 0.0) if mode != "rms" else torch.zeros_like(raw)
    changed = (held != raw) & ok & ~silent if mode != "shift" else torch.zeros_like(silent)
    return Affine(scale, shift, int((silent & ok).sum()), int(changed.sum()), int((~ok).sum()))


def _finite(one: Moments) -> Tensor:
    return torch.isfinite(one.mean) & torch.isfinite(one.squares)


def variance_kept(count: int, correlation: float) -> float:
    """The share of its variance that a channel keeps when `count` equally strong ones are averaged: (1+(N-1)ρ)/N."""
    return (1 + (count - 1) * correlation) / count
