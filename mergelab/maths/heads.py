"""Attention heads of two networks matched whole: which is which, and how each turns inside.

An element of attention's symmetry puts the key-value heads in another order, the query heads of each among themselves
too, and multiplies queries and keys by one orthogonal matrix, values and the output's columns by another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergelab.maths.matching import assignment, pair_angles, pair_parts, pair_rotation, permutation_matrix, procrustes


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
