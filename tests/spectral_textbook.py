"""The spectral methods once more, as plainly as the papers write them: whole SVDs of whole matrices in float64, loops.

Right where the papers are: on deltas of full rank, where no direction is below the noise floor. Each takes deltas (a
list of float64 matrices) and weights, and returns the merged delta.
"""

import torch
from torch.linalg import svd


def polar(columns):
    p, _, qt = svd(columns, full_matrices=False)
    return p @ qt


def tsv_m(deltas, weights):
    k = min(deltas[0].shape) // len(deltas)
    parts = [svd(tau, full_matrices=False) for tau in deltas]
    left = torch.cat([u[:, :k] for u, _, _ in parts], 1)
    right = torch.cat([vt[:k].T for _, _, vt in parts], 1)
    middle = torch.cat([weight * s[:k] for weight, (_, s, _) in zip(weights, parts)])
    return polar(left) @ torch.diag(middle) @ polar(right).T


def iso_c(deltas, weights):
    u, s, vt = svd(sum(w * tau for w, tau in zip(weights, deltas)), full_matrices=False)
    return s.mean() * u @ vt


def iso_cts(deltas, weights, common):
    n, count = min(deltas[0].shape), len(deltas)
    own = min(round((n - int(n * common)) / count), n // count)
    shared = n - own * count
    u, s, vt = svd(sum(w * tau for w, tau in zip(weights, deltas)), full_matrices=False)
    u, s, vt = u[:, :shared], s[:shared], vt[:shared]
    lefts, values, rights = [u], [s], [vt.T]
    for w, tau in zip(weights, deltas):
        u_own, s_own, vt_own = svd(w * tau - u @ u.T @ (w * tau), full_matrices=False)
        lefts.append(u_own[:, :own])
        values.append(s_own[:own])
        rights.append(vt_own[:own].T)
    return torch.cat(values).mean() * polar(torch.cat(lefts, 1)) @ polar(torch.cat(rights, 1)).T


def joint(deltas):
    """U and the S V_iᵀ of [τ_1 … τ_T] = U S [V_1ᵀ … V_Tᵀ], without what is below 1e-5 of σ_1."""
    u, s, vt = svd(torch.cat(deltas, 1), full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum())
    return u[:, :rank], [s[:rank, None] * block for block in vt[:rank].chunk(len(deltas), 1)]


def knots_ties(deltas, weights, density):
    u, parts = joint(deltas)
    kept = []
    for part in parts:
        count = max(1, int(density * part.numel()))
        least = part.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(part.abs() >= least, part, 0))
    weighted = [w * part for w, part in zip(weights, kept)]
    sign = sum(weighted).sign()
    chosen = [torch.where(part.sign() == sign, part, 0) for part in weighted]
    return u @ (sum(chosen) / sum((part != 0).double() for part in chosen).clamp(min=1))


def core_space(deltas, merge):
    """merge: what is done to the list of cores."""
    u, _ = joint(deltas)
    v, _ = joint([tau.T for tau in deltas])
    return u @ merge([u.T @ tau @ v for tau in deltas]) @ v.T


def swudi(deltas, weights, keep, time, start):
    deltas = [w * tau for w, tau in zip(weights, deltas)]
    energies = [tau.square().sum() for tau in deltas]
    c = sum(tau.T @ tau / energy for tau, energy in zip(deltas, energies))
    d = sum(tau @ tau.T @ tau / energy for tau, energy in zip(deltas, energies))
    values, q = torch.linalg.eigh(c)
    f = 1 - torch.exp(-time * values)
    f[: len(f) - int(len(f) * keep + 0.999)] = 0
    first = {"sum": sum(deltas), "mean": sum(deltas) / len(deltas), "zero": 0 * deltas[0]}[start]
    return first - first @ q @ torch.diag(f) @ q.T + d @ q @ torch.diag(f / values.clamp(min=1e-8)) @ q.T


def svc(delta, deltas, weights, alpha):
    u, s, vt = svd(delta, full_matrices=False)
    scaled = s.clone()
    for r in range(len(s)):
        ratios = []
        for w, tau in zip(weights, deltas):
            own = w * u[:, r] @ tau
            ratios.append((u[:, r] @ delta) @ own / own.square().sum())
        if all(ratio > 0 for ratio in ratios):
            scaled[r] = s[r] / max(sum(ratios) / len(ratios), alpha)
    return u @ torch.diag(scaled) @ vt


def pcb(deltas, weights, ratio):
    """As the authors' code has it, a row at a time, on the entries of one tensor."""

    def normalised(x):
        return (x - x.min()) / (x.max() - x.min())

    flat = [(w * tau).flatten() for w, tau in zip(weights, deltas)]
    d, total = len(flat[0]), sum(flat)
    sizes, shares = [], []
    for tau in flat:
        ordered = tau.abs().sort().values
        size = tau.abs().clamp(ordered[int(d * 1e-4)], ordered[int(d * (1 - 1e-4) - 1)])
        beta = torch.exp(len(flat) * normalised(size) ** 2) * torch.tanh(tau * total)
        ordered = beta.sort().values
        sizes.append(tau.sign() * size)
        shares.append(normalised(beta.clamp(ordered[int(d * (1 - ratio))], ordered[-1])))
    merged = sum(s * tau for s, tau in zip(shares, sizes)) / sum(shares).clamp(min=1e-12)
    return merged.view_as(deltas[0])
