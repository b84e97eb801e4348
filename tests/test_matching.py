"""The mathematics of matching: an exact assignment, Procrustes, rotary angles, and whole attention heads."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from making import noise

from mergelab.maths.heads import Freedom, HeadOrder, head_products, heads_gain, matched_heads, same_heads
from mergelab.maths.matching import assignment, optimal_assignment, pair_angles, pair_rotation, procrustes


def reached(gain, order):
    return float(gain[torch.arange(len(gain)), order].sum())


@pytest.mark.parametrize("size", range(8))
def test_an_assignment_is_the_best_of_all_permutations(size):
    for seed in range(8):
        gain = noise(size, size, seed=seed)
        gain = gain.round() if seed % 2 else gain  # with ties, and without
        order = assignment(gain)
        assert sorted(order.tolist()) == list(range(size))
        best = max(reached(gain, torch.tensor(p, dtype=torch.long)) for p in permutations(range(size)))
        assert reached(gain, order) == pytest.approx(best, abs=1e-12)


def hard_cases(size):
    dead = noise(size, 12, seed=1)
    dead[: size // 3] = 0
    yield "uniform", noise(size, size).abs()
    yield "gram", noise(size, 20) @ noise(20, size, seed=1)
    yield "ties", (4 * noise(size, size)).round()
    yield "nothing to choose", torch.zeros(size, size)
    yield "dead neurons", dead @ (dead.flip(0) + noise(size, 12, seed=2)).T
    yield "one scale", 1e6 + 1e-6 * noise(size, size)


@pytest.mark.parametrize("size", [50, 300])
def test_an_assignment_comes_with_the_proof_that_none_is_better(size):
    for case, gain in hard_cases(size):
        order, u, v = optimal_assignment(gain)
        slack = 1e-9 * float(gain.abs().max() + 1)
        assert sorted(order.tolist()) == list(range(size)), case
        assert (u[:, None] + v - gain).min() >= -slack, case  # the prices are feasible, so they bound every permutation
        assert reached(gain, order) == pytest.approx(float(u.sum() + v.sum()), abs=size * slack), case


def test_an_assignment_finds_a_planted_order_of_a_thousand():
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    rows = noise(1000, 64)
    assert torch.equal(rows[assignment(rows[order] @ rows.T)], rows[order])


def test_procrustes_finds_a_planted_rotation_and_no_other_is_nearer():
    a, turn = noise(8, 40), procrustes(noise(8, 8, seed=3))
    found = procrustes(a @ (turn.T @ a).T)
    assert torch.allclose(found, turn) and torch.allclose(turn @ turn.T, torch.eye(8, dtype=torch.float64))
    product = noise(8, 8, seed=4)
    others = (procrustes(noise(8, 8, seed=seed)) for seed in range(5, 50))
    assert all((product * other).sum() < (product * procrustes(product)).sum() for other in others)


def test_a_rotary_pair_turns_by_the_angle_that_was_planted_and_the_rest_stays():
    angles = torch.tensor([0.3, -2.0, 3.0], dtype=torch.float64)
    turn, a = pair_rotation(angles, 8), noise(8, 20)
    assert torch.allclose(pair_angles(a @ (turn.T @ a).T, 6), angles)
    assert torch.equal(turn[6:], torch.eye(8, dtype=torch.float64)[6:])


FREEDOMS = {
    "free": Freedom(),
    "permuted": Freedom(rotations=False),
    "rotary": Freedom(rotary=4),
    "partly rotary": Freedom(rotary=2),
    "normed": Freedom(free=False),
}


@pytest.mark.parametrize("kind", FREEDOMS)
def test_heads_are_found_whole_with_what_was_turned_inside_them(kind):
    freedom, kv, repeat, width = FREEDOMS[kind], 3, 2, 4
    draw = torch.Generator().manual_seed(1)
    planted = matched_heads([random_products(kv, repeat, width, seed=5)], torch.zeros(kv, kv), freedom)
    planted = HeadOrder(torch.randperm(kv, generator=draw), planted.layers)
    b = [noise(kv, repeat, width, 30), noise(kv, width, 30, seed=1), noise(kv, width, 30, seed=2)]
    b.append(noise(kv, repeat, width, 30, seed=3))
    a = acted(planted, b)
    products, nothing = [head_products(a, b)], torch.zeros(kv, kv, dtype=torch.float64)
    found = matched_heads(products, nothing, freedom)
    assert torch.equal(found.order, planted.order)
    for mine, theirs in zip(acted(found, b), a):
        assert torch.allclose(mine, theirs, atol=1e-9)
    squares = sum(float(part.square().sum()) for part in a)
    assert heads_gain(products, nothing, found) == pytest.approx(squares)
    assert heads_gain(products, nothing, same_heads(kv, repeat, width)) < squares


def random_products(kv, repeat, width, seed):
    shapes = [(kv, repeat, width, 30), (kv, width, 30), (kv, width, 30), (kv, repeat, width, 30)]
    a, b = ([noise(*shape, seed=seed + 10 * i + side) for i, shape in enumerate(shapes)] for side in (0, 1))
    return head_products(a, b)


def acted(element, parts):
    q, k, v, o = parts
    turns, order = element.layers[0], element.order
    many = [part[order[:, None], turns.within] for part in (q, o)]
    return [
        turns.qk[:, None] @ many[0],
        turns.qk @ k[order],
        turns.vo @ v[order],
        turns.vo[:, None] @ many[1],
    ]


def test_the_order_of_heads_weighs_what_else_speaks_for_it():
    products = [random_products(2, 1, 4, seed=7)]
    for wish in ([0, 1], [1, 0]):
        strong = 1e6 * torch.eye(2, dtype=torch.float64)[wish]
        assert matched_heads(products, strong, Freedom()).order.tolist() == wish


def test_without_rotations_an_element_only_permutes():
    found = matched_heads([random_products(2, 2, 4, seed=9)], torch.zeros(2, 2), replace(Freedom(), rotations=False))
    for matrix in (*found.layers[0].qk, *found.layers[0].vo):
        assert sorted(matrix.argmax(1).tolist()) == [0, 1, 2, 3] and torch.equal(matrix.sum(1), matrix.new_ones(4))
