"""Which neuron of one network is which of another: assignments, rotations, and attention heads matched whole.

Pure tensors. An assignment is exact (shortest augmenting paths; Jonker and Volgenant 1987), a rotation is Procrustes'
(Schönemann 1966), and a pair of rotary dimensions turns by the argument of a complex inner product. Similarities are
signed: two neurons that fire in opposite senses cancel in an average, so they are no match.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Freedom:
    """What may be done inside an attention head without changing the network's function.

    rotary: how many leading dimensions of queries and keys turn in pairs with the position (RoPE). free: whether the
    other dimensions of queries and keys may be mixed; normalised ones may not. rotations: mix by orthogonal matrices
    and turn rotary pairs; otherwise dimensions are only permuted, which costs no precision.
    """

    rotary: int = 0
    free: bool = True
    rotations: bool = True

    def turn_value(self, product: Tensor) -> Tensor:
        """How well a head of B can be made to agree in its queries and keys, for A Bᵀ given. (…, n, n) -> (…)"""
        cosine, sine = pair_parts(product, self.rotary)
        pairs = torch.hypot(cosine, sine) if self.rotations else cosine
        rest = product[..., self.rotary :, self.rotary :]
        return pairs.sum(-1) + (mix_value(rest) if self.free else rest.diagonal(dim1=-2, dim2=-1).sum(-1))

    def turn(self, product: Tensor) -> Tensor:
        """The transform of a head's queries and keys that agrees best, for A Bᵀ given. (n, n)"""
        angles = pair_angles(product, self.rotary)
        matrix = pair_rotation(angles if self.rotations else torch.zeros_like(angles), len(product))
        if self.free and self.rotary < len(product):
            matrix[self.rotary :, self.rotary :] = self.mix(product[self.rotary :, self.rotary :])
        return matrix

    def mix(self, product: Tensor) -> Tensor:
        """The orthogonal matrix or the permutation that agrees best, for A Bᵀ given. (n, n)"""
        return procrustes(product) if self.rotations else permutation_matrix(assignment(product))


def mix_value(product: Tensor) -> Tensor:
    """The best agreement that an orthogonal matrix can reach: the nuclear norm. (…, n, n) -> (…)

    Through the Gram matrix, several times as fast: what it loses in the smallest singular values decides no pairing.
    """
    return torch.linalg.eigvalsh(product.mT @ product).clamp(min=0).sqrt().sum(-1)


@dataclass(frozen=True)
class Turns:
    """What is done to the heads of one layer, after the key-value heads are in order.

    within: the order of each group's query heads (kv, repeat). qk, vo: what multiplies a head's queries and keys, and
    its values and the output's columns (kv, n, n), orthogonal.
    """

    within: Tensor
    qk: Tensor
    vo: Tensor


@dataclass(frozen=True)
class HeadOrder:
    """One element of the symmetry of attention: the order of the key-value heads (kv,), and each layer's Turns."""

    order: Tensor
    layers: tuple[Turns, ...]


def same_heads(kv: int, repeat: int, width: int, layers: int = 1) -> HeadOrder:
    """The element that changes nothing."""
    still = torch.eye(width, dtype=torch.float64).expand(kv, -1, -1)
    return HeadOrder(torch.arange(kv), (Turns(torch.arange(repeat).expand(kv, -1), still, still),) * layers)


@dataclass(frozen=True)
class HeadProducts:
    """All inner products between the heads of two networks in one layer; rows i of A, rows j of B.

    q, o: (kv, kv, repeat, repeat, n, n). k, v: (kv, kv, n, n).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    def of(self, within: Tensor) -> tuple[Tensor, Tensor]:
        """Products summed over a group's query heads, put in the order within (kv, kv, repeat). Two (kv, kv, n, n)"""
        index = within[..., None, None, None].expand(*within.shape, 1, *self.q.shape[-2:])
        q, o = (torch.gather(part, 3, index).squeeze(3).sum(2) for part in (self.q, self.o))
        return q + self.k, o + self.v


def head_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> HeadProducts:
    """Inner products of the heads of two networks, float64. q, o: (kv, repeat, n, features); k, v: (kv, n, features)"""
    (qa, ka, va, oa), (qb, kb, vb, ob) = a, b
    many, one = "grif,hsjf->ghrsij", "gif,hjf->ghij"
    products = (torch.einsum(*terms) for terms in ((many, qa, qb), (one, ka, kb), (one, va, vb), (many, oa, ob)))
    return HeadProducts(*(product.double() for product in products))


def matched_heads(layers: Sequence[HeadProducts], order_gain: Tensor, freedom: Freedom) -> HeadOrder:
    """The heads of B in the order of A's, and turned to agree. Layers share the order of their key-value heads.

    order_gain (kv, kv): what else speaks for giving A's head g the head h. Heads are paired by what rotations could
    reach, also where the turns are then permutations.
    """
    gain, best = order_gain.clone(), []
    for layer in layers:
        within = _matched_queries(layer, freedom)
        turned, mixed = layer.of(within)
        gain += freedom.turn_value(turned) + mix_value(mixed)
        best.append((within, turned, mixed))
    order = assignment(gain)
    pairs = list(enumerate(order.tolist()))
    return HeadOrder(order, tuple(_turns(pairs, *found, freedom) for found in best))


def _turns(pairs: list[tuple[int, int]], within: Tensor, turned: Tensor, mixed: Tensor, freedom: Freedom) -> Turns:
    return Turns(
        torch.stack([within[g, h] for g, h in pairs]),
        torch.stack([freedom.turn(turned[g, h]) for g, h in pairs]),
        torch.stack([freedom.mix(mixed[g, h]) for g, h in pairs]),
    )


def _matched_queries(layer: HeadProducts, freedom: Freedom) -> Tensor:
    """For each pair of groups, the best order of the query heads. (kv, kv, repeat)"""
    kv, _, repeat, *_ = layer.q.shape
    if repeat == 1:
        return torch.zeros(kv, kv, 1, dtype=torch.long)
    value = freedom.turn_value(layer.q + layer.k[:, :, None, None] / repeat)
    value = value + mix_value(layer.o + layer.v[:, :, None, None] / repeat)
    return torch.stack([torch.stack([assignment(value[g, h]) for h in range(kv)]) for g in range(kv)])


def heads_gain(layers: Sequence[HeadProducts], order_gain: Tensor, element: HeadOrder) -> float:
    """The inner product that an element reaches: what `matched_heads` makes large."""
    kv = torch.arange(len(element.order))
    gain = order_gain[kv, element.order].sum()
    for layer, turns in zip(layers, element.layers):
        turned, mixed = layer.of(turns.within[:, None].expand(-1, len(kv), -1))
        gain = gain + (turned[kv, element.order] * turns.qk).sum() + (mixed[kv, element.order] * turns.vo).sum()
    return float(gain)


def turned_to_agree(layers: Sequence[HeadProducts], element: HeadOrder, freedom: Freedom) -> HeadOrder:
    """The element with its heads where they are, and their queries and keys turned to agree with A's."""
    kv = torch.arange(len(element.order))
    found = []
    for layer, turns in zip(layers, element.layers):
        turned, _ = layer.of(turns.within[:, None].expand(-1, len(kv), -1))
        found.append(replace(turns, qk=torch.stack([freedom.turn(part) for part in turned[kv, element.order]])))
    return HeadOrder(element.order, tuple(found))
