"""Entries of several tensors that agree or disagree: trim the small ones, elect a sign, average those that agree.

All take a stack (expert, …) and treat each entry on its own.
"""

import torch
from torch import Tensor


def threshold_keeping(magnitudes: Tensor, count: int) -> Tensor:
    """The count-th largest of some magnitudes (any shape): entries at or above it are the ones to keep.

    Entries that tie with it are all kept. 0 keeps none (the answer is infinite).
    """
    flat = magnitudes.flatten()
    if count <= 0:
        return flat.new_tensor(float("inf"))
    if count >= flat.numel():
        return flat.new_tensor(0.0)
    return torch.kthvalue(flat, flat.numel() - count + 1).values


def trimmed(values: Tensor, count: int) -> Tensor:
    """The `count` entries of largest magnitude; the others are zero."""
    magnitudes = values.abs()
    return torch.where(magnitudes >= threshold_keeping(magnitudes, count), values, 0)


def elected(total: Tensor, tie: str) -> Tensor:
    """The sign of each entry of a sum over experts, +1 or -1; an exact zero takes the sign of the `tie` rule.

    tie: "plus" (as mergekit's TIES), or "majority": the sign that most entries of the tensor have (as the code of the
    TIES paper, and DRM's).
    """
    sign = total.sign()
    return torch.where(sign == 0, sign.sum().sign() if tie == "majority" else 1, sign)


def agreeing(values: Tensor, sign: Tensor) -> Tensor:
    """The entries of the stack whose sign is the elected one; the others are zero. (expert, …)"""
    return torch.where(values.sign() == sign, values, 0)


def conflict_share(values: Tensor) -> float:
    """Of the entries that at least one expert moves, the share that two experts move in opposite directions."""
    up, down = (values > 0).any(0), (values < 0).any(0)
    touched = int((up | down).sum())
    return int((up & down).sum()) / touched if touched else 0.0
