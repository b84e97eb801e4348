"""The methods once more, as plainly as the papers write them: float64, whole SVDs, loops. Slow, and easy to believe.

Each takes deltas (a list of float64 tensors) and weights, and returns the merged delta.
"""

import torch


def star(deltas, weights, eta):
    total = torch.zeros_like(deltas[0])
    for tau, weight in zip(deltas, weights):
        u, s, vt = torch.linalg.svd(tau, full_matrices=False)
        if s.sum() == 0:
            continue
        r = next(r for r in range(1, len(s) + 1) if s[:r].sum() >= eta / 100 * s.sum() or r == len(s))
        c = s.sum() / s[:r].sum()
        total += weight * (u[:, :r] * (c * s[:r])) @ vt[:r]
    return total / len(deltas)


def drm_h(deltas, weights, drop=0.8, floor=0.01):
    u, s, vt = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    rank = int((s > floor * s[0]).sum())
    u, s, blocks = u[:, :rank], s[:rank], vt[:rank].chunk(len(deltas), dim=1)
    lengths = [block.norm(dim=1) for block in blocks]
    rows, entries = [], []
    for block, length in zip(blocks, lengths):
        live = length > 1e-6
        unit = torch.where(live[:, None], block / torch.where(live, length, 1)[:, None], 0)
        rows.append(unit)
        entries.append(unit[live].abs().flatten())
    entries = torch.cat(entries).sort(descending=True).values
    least = entries[round((1 - drop) * len(entries)) - 1] * (1 - 1e-9)  # what ties with the last is kept
    scaled = [torch.where(unit.abs() >= least, unit, 0) * (s * n)[:, None] for unit, n in zip(rows, lengths)]
    return u @ vote(scaled, weights)


def drm_v(deltas, weights, drop=0.8, floor=0.01):
    return drm_h([tau.T for tau in deltas], weights, drop, floor).T


def vote(parts, weights):
    """Elect each entry's sign by the sum; weigh those that agree; mean over those that are not zero."""
    sign = sum(parts).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    chosen = [torch.where(part.sign() == sign, part * weight, 0) for part, weight in zip(parts, weights)]
    return sum(chosen) / sum((part != 0).double() for part in chosen).clamp(min=1)


def linear(deltas, weights):
    return sum(weight * tau for tau, weight in zip(deltas, weights)) / sum(weights)


def task_arithmetic(deltas, weights, scale):
    return scale * sum(weight * tau for tau, weight in zip(deltas, weights))


def ties(deltas, weights, density, scale, normalize):
    flat = []
    for tau in deltas:
        keep = tau.abs().flatten().argsort(descending=True)[: int(density * tau.numel())]
        flat.append(torch.zeros(tau.numel(), dtype=tau.dtype).index_copy(0, keep, tau.flatten()[keep]))
    merged = torch.zeros(deltas[0].numel(), dtype=torch.float64)
    for entry in range(len(merged)):
        parts = [(weight * tau[entry], weight) for tau, weight in zip(flat, weights)]
        positive = sum(part for part, _ in parts) >= 0
        agree = [(part, weight) for part, weight in parts if part != 0 and (part > 0) == positive]
        mass = sum(weight for _, weight in agree) if normalize else 1
        merged[entry] = sum(part for part, _ in agree) / mass if agree else 0
    return scale * merged.view_as(deltas[0])
