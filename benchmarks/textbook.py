"""The merge methods as the papers' own code goes about them, one matrix at a time: what mergelab is measured against.

A delta is a dense matrix, its factorisation the whole `torch.linalg.svd`, in the precision of the deltas. The steps are
those of github.com/IBM/STAR and github.com/yophis/decom-renorm-merge, as read on 2026-11-29: where they make a diagonal
matrix or select by `kthvalue`, so do we. Written anew; no code of theirs is in it.
"""

import torch
from torch import Tensor


def star(deltas: list[Tensor], eta: float = 40) -> Tensor:
    """STAR: each delta truncated, then their mean."""
    return mean([truncated(delta, eta) for delta in deltas])


def star_of_sketches(deltas: list[Tensor], rank: int, eta: float = 40) -> Tensor:
    """STAR where the deltas' rank is known: a randomised SVD of five directions more."""
    return mean([truncated(delta, eta, rank) for delta in deltas])


def truncated(delta: Tensor, eta: float = 40, known_rank: int | None = None) -> Tensor:
    """The leading directions that keep η percent of the nuclear norm, scaled up to all of it."""
    if known_rank is None:
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(delta, q=known_rank + 5)
        s, vt = s[:known_rank], v.T
    whole = s.sum()
    rank = min(int(torch.searchsorted(s.cumsum(0), eta / 100 * whole)) + 1, len(s))
    kept = s[:rank] * (whole / s[:rank].sum())
    return u[:, :rank] @ torch.diag(kept) @ vt[:rank]


def drm_h(deltas: list[Tensor], drop: float = 0.8, floor: float = 0.01) -> Tensor:
    """DRM-H, by the SVD of the deltas side by side."""
    u, s, vt = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    rank = int((s > floor * s[0]).sum())
    blocks = torch.stack(vt[:rank].chunk(len(deltas), 1))  # (expert, rank, columns)
    lengths = blocks.norm(dim=2, keepdim=True)
    return u[:, :rank] @ vote(s[:rank, None] * lengths * pruned(blocks / lengths, drop))


def drm_v(deltas: list[Tensor], drop: float = 0.8, floor: float = 0.01) -> Tensor:
    """DRM-V, by the SVD of the deltas on top of each other."""
    u, s, vt = torch.linalg.svd(torch.cat(deltas, 0), full_matrices=False)
    rank = int((s > floor * s[0]).sum())
    blocks = torch.stack(u[:, :rank].chunk(len(deltas), 0))  # (expert, rows, rank)
    lengths = blocks.norm(dim=1, keepdim=True)
    return vote(s[:rank] * lengths * pruned(blocks / lengths, drop)) @ vt[:rank]


def pruned(stack: Tensor, drop: float) -> Tensor:
    """The largest entries of all experts together; zeros elsewhere."""
    size = stack.abs()
    least = size.flatten().kthvalue(stack.numel() - round((1 - drop) * stack.numel()) + 1).values
    return stack.masked_fill(size < least, 0)


def vote(stack: Tensor) -> Tensor:
    """The mean of the entries that agree with the sign of their sum. (expert, …) -> (…)"""
    sign = stack.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    chosen = stack.masked_fill(stack.sign() != sign, 0)
    return chosen.sum(0) / chosen.count_nonzero(0).clamp(min=1)


def ties(deltas: list[Tensor], density: float = 0.2) -> Tensor:
    """TIES, by `topk` of each delta."""
    kept = []
    for delta in deltas:
        size = delta.abs()
        least = size.flatten().topk(max(1, int(density * delta.numel()))).values[-1]
        kept.append(torch.where(size >= least, delta, 0))
    stack = torch.stack(kept)
    chosen = torch.where(stack.sign() == torch.where(stack.sum(0) >= 0, 1, -1), stack, 0)
    return chosen.sum(0) / chosen.count_nonzero(0).clamp(min=1)


def mean(deltas: list[Tensor]) -> Tensor:
    """The first copied and scaled, the others added to it, scaled too."""
    total = deltas[0] / len(deltas)
    for delta in deltas[1:]:
        total += delta / len(deltas)
    return total


METHODS = {"star": star, "drm_h": drm_h, "drm_v": drm_v, "ties": ties, "linear": mean}
