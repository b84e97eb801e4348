"""Which neuron of one network is which of another: assignments and rotations. Attention heads: heads.py.

An assignment is exact (shortest augmenting paths; Jonker and Volgenant 1987), a rotation is Procrustes'
(Schönemann 1966), and a pair of rotary dimensions turns by the argument of a complex inner product. Similarities are
signed: two neurons that fire in opposite senses cancel in an average, so they are no match.
"""

import torch
from torch import Tensor


def assignment(gain: Tensor) -> Tensor:
    """The permutation p with the largest sum of gain[i, p[i]]. gain: (n, n), finite. (n,) int64, on the CPU."""
    return optimal_assignment(gain)[0]


def optimal_assignment(gain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best permutation with its proof: prices u, v with u[i] + v[j] ≥ gain[i, j], equal where i is given j.

    That the prices' sum equals the permutation's gain certifies it (linear programming duality). Works in float64.
    """
    cost = -gain.detach().to("cpu", torch.float64).contiguous()
    u, v, column = _start(cost)
    row_of = torch.full_like(column, -1)
    row_of[column[column >= 0]] = (column >= 0).nonzero()[:, 0]
    for row in (column < 0).nonzero()[:, 0].tolist():
        _augment(cost, u, v, row_of, column, row)
    return column, -u, -v


def _start(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Feasible prices and the rows that have their cheapest column to themselves; -1 for the others."""
    size = len(cost)
    v = _auction_prices(cost) if size > 1 else cost.new_zeros(size)
    u, wish = (cost - v).min(1) if size else (v.clone(), torch.empty(0, dtype=torch.long))
    first = torch.full((size,), size).scatter_reduce_(0, wish, torch.arange(size), "amin")
    return u, v, torch.where(first[wish] == torch.arange(size), wish, -1)


def _auction_prices(cost: Tensor, rounds: int = 100) -> Tensor:
    """Prices after some rounds of an auction, all free rows bidding at once: most rows then want a column of their own.

    Any prices are feasible to start from, so the rounds and the least bid touch the speed alone.
    """
    size = len(cost)
    v, owner, free = cost.new_zeros(size), torch.full((size,), -1), torch.arange(size)
    least = float(cost.max() - cost.min()) / (8 * size)
    for _ in range(rounds if least else 0):
        best, wish = torch.topk(cost[free] - v, 2, dim=1, largest=False)
        bids = best[:, 1] - best[:, 0] + least
        top = torch.zeros_like(v).scatter_reduce_(0, wish[:, 0], bids, "amax")
        wins = bids == top[wish[:, 0]]
        v = v - top
        owner[wish[wins, 0]] = free[wins]
        free = torch.ones(size, dtype=torch.bool).index_fill_(0, owner[owner >= 0], False).nonzero()[:, 0]
        if len(free) <= size // 64:
            break
    return v


def _augment(cost: Tensor, u: Tensor, v: Tensor, row_of: Tensor, column: Tensor, start: int) -> None:
    """Give one more row a column, along the cheapest alternating path (Dijkstra, reduced costs). Changes its inputs."""
    size, row, length = len(cost), start, 0.0
    distance, came_from = torch.full((size,), torch.inf, dtype=cost.dtype), torch.full((size,), start)
    open_v, seen, lengths, rows = v.clone(), [], [], [start]
    while True:
        through = torch.sub(cost[row], open_v).add_(length - u[row].item())  # inf in a column that was seen
        came_from = torch.where(through < distance, row, came_from)
        distance = torch.minimum(distance, through)
        least, at = (found.item() for found in distance.min(0))
        if least == length and (tied := ((distance == least) & (row_of < 0)).nonzero()).numel():
            at = tied[0].item()  # a free column of a plateau ends the path: without this, ties are walked one by one
        length, end = least, at
        if (row := row_of[end].item()) < 0:
            break
        seen.append(end), lengths.append(length), rows.append(row)
        open_v[end], distance[end] = -torch.inf, torch.inf
    rise = length - torch.tensor([0.0, *lengths], dtype=cost.dtype)
    u[rows] += rise
    v[seen] -= rise[1:]
    while end != -1:  # hand each column on the path to the row that reached it
        row = came_from[end].item()
        row_of[end] = row
        end, column[row] = (-1 if row == start else column[row].item()), end


def permutation_matrix(order: Tensor) -> Tensor:
    """The matrix P with (P x)[i] = x[order[i]]. (n, n) float64"""
    return torch.eye(len(order), dtype=torch.float64)[order]


def procrustes(product: Tensor) -> Tensor:
    """The orthogonal R with the largest <product, R>: for A Bᵀ, the one that brings R B nearest A. (…, n, n)"""
    left, _, right = torch.linalg.svd(product)
    return left @ right


def pair_parts(product: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Of A Bᵀ, the cosine and sine parts of each rotary pair (i, i + width/2). product: (…, n, n). (…, width/2) each

    The pair of B that is turned by θ has inner product cos θ · cosine + sin θ · sine with that of A.
    """
    half = width // 2
    same, across = product.diagonal(dim1=-2, dim2=-1), product.diagonal(half, dim1=-2, dim2=-1)
    back = product.diagonal(-half, dim1=-2, dim2=-1) if half else same
    return same[..., :half] + same[..., half:width], back[..., :half] - across[..., :half]


def pair_angles(product: Tensor, width: int) -> Tensor:
    """The angle by which each rotary pair of B turns to lie nearest that of A. (…, width/2) radians"""
    cosine, sine = pair_parts(product, width)
    return torch.atan2(sine, cosine)


def pair_rotation(angles: Tensor, size: int) -> Tensor:
    """The matrix that turns the plane of dimensions i and i + len/2 by angle i, and leaves all others. (size, size)"""
    half = len(angles)
    matrix = torch.eye(size, dtype=torch.float64)
    low, high = torch.arange(half), torch.arange(half, 2 * half)
    matrix[low, low], matrix[high, high] = angles.cos(), angles.cos()
    matrix[low, high], matrix[high, low] = -angles.sin(), angles.sin()
    return matrix
