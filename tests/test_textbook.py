"""Each method equals its formula, written out plainly in float64 (textbook.py)."""

import pytest
import textbook
import torch
from making import layer_of, noise

from mergelab import METHODS
from mergelab.maths.inner import unmoved
from mergelab.maths.spectral import LowRank, dense

WEIGHTS = [1.0, 0.5, 1.7]


def low_rank(out, columns, rank, seed):
    return noise(out, rank, seed=seed) @ noise(rank, columns, seed=seed + 50)


CASES = {
    "square": [noise(12, 12, seed=i) for i in range(3)],
    "wide": [noise(7, 31, seed=i) for i in range(3)],
    "tall": [noise(31, 7, seed=i) for i in range(3)],
    "very tall": [noise(40, 3, seed=i) for i in range(3)],
    "one row": [noise(1, 9, seed=i) for i in range(3)],
    "one column": [noise(9, 1, seed=i) for i in range(3)],
    "low rank": [low_rank(16, 20, 3, seed=i) for i in range(3)],
    "of different ranks": [low_rank(16, 20, 1 + 7 * i, seed=i) for i in range(3)],
    "a zero expert among others": [noise(10, 14, seed=0), torch.zeros(10, 14).double(), noise(10, 14, seed=2)],
    "equal experts": [noise(10, 14, seed=5)] * 3,
    "of very different sizes": [noise(10, 14, seed=i) * 10.0 ** (-2 * i) for i in range(3)],
}
each_case = pytest.mark.parametrize("deltas", CASES.values(), ids=CASES)


def assert_equal(mine, wanted, tolerance=1e-6):
    """Equal to a share of the largest entry; the spectral noise floor of 1e-7 bounds what can be asked."""
    assert (mine - wanted).abs().max() <= tolerance * wanted.abs().max()


@each_case
@pytest.mark.parametrize("eta", [1, 40, 77, 100])
def test_star_keeps_eta_percent_of_the_nuclear_norm_and_rescales(deltas, eta):
    merged = METHODS["star"](layer_of(deltas, WEIGHTS), eta=eta)
    assert_equal(merged.delta, textbook.star(deltas, WEIGHTS, eta))


@each_case
@pytest.mark.parametrize("method", ["drm_h", "drm_v"])
@pytest.mark.parametrize("settings", [{}, {"drop": 0.5}, {"drop": 0.0, "floor": 0.1}], ids=str)
def test_drm_votes_in_the_joint_basis_of_the_concatenation(deltas, method, settings):
    merged = METHODS[method](layer_of(deltas, WEIGHTS), **settings)
    assert_equal(merged.delta, getattr(textbook, method)(deltas, WEIGHTS, **settings))


def error(merged, wanted):
    return torch.linalg.vector_norm(merged.delta - wanted) / torch.linalg.vector_norm(wanted)


def adapter(out, columns, rank, seed):
    return LowRank(noise(out, rank, seed=seed).float(), noise(rank, columns, seed=seed + 50).float())


SINGLE = {
    "full": [noise(96, 150, seed=i).float() for i in range(3)],
    "tall": [noise(300, 60, seed=i).float() for i in range(3)],
    "an adapter's product": [low_rank(120, 100, 4, seed=i).float() for i in range(3)],
    "an adapter's product in bfloat16": [low_rank(120, 100, 4, seed=i).bfloat16().float() for i in range(3)],
    "adapters": [adapter(120, 100, 4, seed=i) for i in range(3)],
    "adapters of different ranks": [adapter(120, 100, 1 + 3 * i, seed=i) for i in range(3)],
    "adapters and full": [adapter(120, 100, 4, seed=1), noise(120, 100, seed=2).float(), adapter(120, 100, 2, seed=3)],
}
each_single = pytest.mark.parametrize("deltas", SINGLE.values(), ids=SINGLE)


def exactly(deltas):
    return [dense(delta.to(torch.float64)) for delta in deltas]


@each_single
@pytest.mark.parametrize("eta", [10, 40, 80])
def test_star_in_float32_is_exact_to_a_few_roundings(deltas, eta):
    merged = METHODS["star"](layer_of(deltas, WEIGHTS), eta=eta)
    assert error(merged, textbook.star(exactly(deltas), WEIGHTS, eta)) < 5e-7


@each_single
@pytest.mark.parametrize("method", ["drm_h", "drm_v"])
def test_drm_in_float32_is_exact_to_a_few_roundings(deltas, method):
    """No entry of these is so near to the threshold, or to a tie, that float32 would decide otherwise."""
    merged = METHODS[method](layer_of(deltas, WEIGHTS))
    assert error(merged, getattr(textbook, method)(exactly(deltas), WEIGHTS)) < 1e-6


@pytest.mark.parametrize("method", ["star", "drm_h", "drm_v"])
def test_adapters_are_never_multiplied_out_one_by_one(monkeypatch, method):
    deltas = SINGLE["adapters"]
    layer = layer_of(deltas)
    monkeypatch.setattr(LowRank, "dense", lambda self: pytest.fail("an adapter was multiplied out"))
    assert METHODS[method](layer).delta.shape == (120, 100)


@pytest.mark.parametrize("method", ["star", "drm_h", "drm_v"])
def test_the_merge_says_by_which_road_its_factors_came(method):
    assert METHODS[method](layer_of(SINGLE["adapters"])).roads[0].startswith("Cholesky, Gram, ")
    assert METHODS[method](layer_of(SINGLE["full"])).roads[0].startswith("Gram, ")


@pytest.mark.parametrize("shape", [(9,), (3, 4, 5)])
@pytest.mark.parametrize("method", ["drm_h", "drm_v"])
def test_drm_votes_on_the_entries_of_what_it_does_not_decompose(method, shape):
    deltas = [noise(*shape, seed=i) for i in range(3)]
    assert_equal(METHODS[method](layer_of(deltas, WEIGHTS)).delta, textbook.vote(deltas, WEIGHTS), 1e-12)


@each_case
def test_linear_is_the_weighted_mean(deltas):
    assert_equal(METHODS["linear"](layer_of(deltas, WEIGHTS)).delta, textbook.linear(deltas, WEIGHTS), 1e-12)


def test_linear_without_normalize_is_the_weighted_sum_of_the_weights():
    base, deltas = noise(4, 5, seed=9), [noise(4, 5, seed=1)]
    merged = METHODS["linear"](layer_of(deltas, [0.7], base), normalize=False)
    assert_equal(base + merged.delta, 0.7 * (base + deltas[0]), 1e-12)


@each_case
def test_task_arithmetic_is_the_scaled_sum(deltas):
    merged = METHODS["task_arithmetic"](layer_of(deltas, WEIGHTS), **{"lambda": 0.3})
    assert_equal(merged.delta, textbook.task_arithmetic(deltas, WEIGHTS, 0.3), 1e-12)


@each_case
@pytest.mark.parametrize("density", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_trims_elects_and_averages_those_that_agree(deltas, density, normalize):
    settings = {"density": density, "lambda": 1.5, "normalize": normalize}
    merged = METHODS["ties"](layer_of(deltas, WEIGHTS), **settings)
    assert_equal(merged.delta, textbook.ties(deltas, WEIGHTS, density, 1.5, normalize), 1e-12)


def test_ties_counts_a_tie_in_sign_as_plus():
    deltas = [torch.tensor([1.0, -2.0]).double(), torch.tensor([-1.0, 2.0]).double()]
    assert METHODS["ties"](layer_of(deltas)).delta.tolist() == [1.0, 2.0]


def test_star_says_the_rank_and_the_gain_that_the_formula_has():
    left, right = torch.linalg.qr(noise(6, 6, seed=1)).Q, torch.linalg.qr(noise(6, 6, seed=2)).Q
    tau = left @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, 0.0]).double()) @ right
    facts = METHODS["star"](layer_of([tau]), eta=60).facts
    assert facts["rank kept"] == (2.0,)
    assert facts["rank kept, share"] == (2 / 6,)
    assert facts["gain"] == pytest.approx((10 / 7,))
    assert facts["energy kept"] == pytest.approx((25 / 30,))
    assert facts["largest singular value"] == pytest.approx((4.0,))


def test_drm_says_who_owns_which_direction():
    one, other = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    one[0, 0], other[1, 1] = 3.0, 2.0
    merged = METHODS["drm_h"](layer_of([one, other]), drop=0.0)
    assert merged.curves["joint_singular_values"].tolist() == pytest.approx([3.0, 2.0])
    assert merged.curves["ownership"].tolist() == [pytest.approx([1.0, 0.0]), pytest.approx([0.0, 1.0])]
    assert merged.facts["joint rank"] == 2.0
    assert merged.facts["share of energy"] == pytest.approx((9 / 13, 4 / 13))


def test_a_layer_that_was_asked_for_a_little_is_right_when_it_is_asked_for_all():
    delta = noise(128, 128, dtype=torch.float32)
    layer = layer_of([delta])
    for eta in (20, 40, 100, 60, 100):  # few directions and many are found by other routines
        merged = METHODS["star"](layer, eta=eta)
        assert error(merged, textbook.star(exactly([delta]), [1.0], eta)) < 5e-7


@pytest.mark.parametrize("method", ["drm_h", "drm_v"])
def test_an_expert_that_leaves_a_matrix_alone_fills_none_beside_adapters(method):
    adapters = [LowRank(noise(40, 3, seed=i), noise(3, 30, seed=9 + i)) for i in range(2)]
    layer = layer_of([*adapters, unmoved(noise(40, 30))])
    merged = METHODS[method](layer)
    assert merged.roads[0].startswith("Cholesky") and merged.facts["share pruned"][2] == 0.0
    plain = [adapter.dense() for adapter in adapters] + [torch.zeros(40, 30).double()]
    assert_equal(merged.delta, METHODS[method](layer_of(plain)).delta, 1e-9)
    assert METHODS[method](layer, drop=0.0).facts["share pruned"] == (0.0, 0.0, 0.0)
