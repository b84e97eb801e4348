"""The spectral methods equal their formulas (spectral_textbook.py), and do not blow up what rounding leaves behind."""

import pytest
import spectral_textbook
import textbook
import torch
from making import layer_of, noise

from mergelab import METHODS, STEPS, Merged
from mergelab.maths.spectral import LowRank
from mergelab.maths.subspace import coordinates, orthogonal, triplets

WEIGHTS = [1.0, 0.5, 1.7]
CASES = {
    "square": [noise(12, 12, seed=i) for i in range(3)],
    "wide": [noise(8, 30, seed=i) for i in range(3)],
    "tall": [noise(30, 8, seed=i) for i in range(3)],
    "two": [noise(11, 14, seed=i) for i in range(2)],
    "of very different sizes": [noise(10, 14, seed=i) * 10.0 ** (-i) for i in range(3)],
}
each_case = pytest.mark.parametrize("deltas", CASES.values(), ids=CASES)


def merged_by(method, deltas, **settings):
    return METHODS[method](layer_of(deltas, WEIGHTS[: len(deltas)]), **settings).delta


def assert_equal(mine, wanted, tolerance=1e-6):
    assert (mine - wanted).abs().max() <= tolerance * wanted.abs().max()


@each_case
def test_tsv_m_makes_the_leading_vectors_of_all_experts_orthogonal(deltas):
    wanted = spectral_textbook.tsv_m(deltas, WEIGHTS)
    assert_equal(merged_by("tsv_m", deltas), wanted)
    assert_equal(merged_by("tsv_m", deltas, **{"lambda": 0.5}), 0.5 * wanted)


@each_case
def test_iso_c_gives_all_directions_of_the_sum_one_strength(deltas):
    assert_equal(merged_by("iso_c", deltas), spectral_textbook.iso_c(deltas, WEIGHTS))


@each_case
@pytest.mark.parametrize("common", [0.8, 0.5, 0.0, 1.0])
def test_iso_cts_adds_each_experts_own_directions(deltas, common):
    assert_equal(merged_by("iso_cts", deltas, common=common), spectral_textbook.iso_cts(deltas, WEIGHTS, common))


@each_case
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_knots_votes_on_coordinates_in_the_joint_basis(deltas, density):
    wanted = spectral_textbook.knots_ties(deltas, WEIGHTS, density)
    assert_equal(merged_by("knots_ties", deltas, density=density), wanted)


@each_case
def test_core_space_merges_the_cores_by_the_inner_method(deltas):
    weights = WEIGHTS[: len(deltas)]
    mean = textbook.linear(deltas, weights)
    assert_equal(merged_by("core_space", deltas, inner="linear"), mean)
    assert_equal(merged_by("core_space", deltas, inner="task_arithmetic"), sum(weights) * mean)
    for name in ("tsv_m", "iso_c"):  # free of the choice of basis
        assert_equal(merged_by("core_space", deltas, inner=name), merged_by(name, deltas))
    wanted = spectral_textbook.core_space(deltas, lambda cores: textbook.ties(cores, weights, 0.5, 1.0, True))
    assert_equal(
        merged_by("core_space", deltas, inner="ties", density=0.5), wanted
    )  # a vote is free of the bases' signs


@each_case
@pytest.mark.parametrize("settings", [("sum", 0.65, 300), ("mean", 1.0, 10), ("zero", 0.5, 1000)], ids=str)
def test_swudi_is_its_closed_form(deltas, settings):
    start, keep, time = settings
    wanted = spectral_textbook.swudi(deltas, WEIGHTS, keep, time, start)
    assert_equal(merged_by("swudi", deltas, start=start, keep=keep, time=time), wanted)


def test_swudi_solves_for_the_least_interference_if_nothing_is_held_back():
    deltas = [noise(6, 4, seed=i) for i in range(3)]
    merged = merged_by("swudi", deltas, keep=1.0, time=10000.0).requires_grad_()
    loss = sum((((merged - w * t) @ (w * t).T) ** 2).sum() / (w * t).square().sum() for w, t in zip(WEIGHTS, deltas))
    (slope,) = torch.autograd.grad(loss, merged)
    assert slope.abs().max() < 1e-9


@each_case
@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_svc_divides_each_direction_by_how_often_it_was_counted(deltas, alpha):
    weights = WEIGHTS[: len(deltas)]
    layer = layer_of(deltas, weights)
    for method in ("task_arithmetic", "star", "ties"):
        merged = METHODS[method](layer)
        calibrated = STEPS["svc"](layer, merged, alpha=alpha)
        assert_equal(calibrated.delta, spectral_textbook.svc(merged.delta, deltas, weights, alpha))
        assert merged.facts.items() <= calibrated.facts.items()


def test_svc_takes_what_equal_experts_share_once():
    tau = noise(6, 9, seed=1)
    layer = layer_of([tau, tau, tau])
    assert_equal(STEPS["svc"](layer, METHODS["task_arithmetic"](layer)).delta, tau)


def test_svc_leaves_alone_what_is_not_decomposed_and_what_is_zero():
    vector = layer_of([noise(7, seed=1)])
    merged = METHODS["linear"](vector)
    assert STEPS["svc"](vector, merged) is merged
    layer = layer_of([noise(7, 9, seed=i) for i in range(3)])
    flat = METHODS["iso_c"](layer)  # all its singular values are equal: it has no directions of its own
    assert STEPS["svc"](layer, flat) is flat
    nothing = layer_of([torch.zeros(4, 5).double()] * 2)
    assert STEPS["svc"](nothing, METHODS["linear"](nothing)).delta.abs().max() == 0


def test_svc_does_not_hear_an_expert_that_leaves_the_tensor_alone():
    deltas = [noise(6, 9, seed=i) for i in range(2)]
    merged = Merged(sum(deltas))
    calibrated = STEPS["svc"](layer_of(deltas), merged).delta
    assert_equal(STEPS["svc"](layer_of([*deltas, torch.zeros(6, 9).double()]), merged).delta, calibrated)


@each_case
@pytest.mark.parametrize("ratio", [0.1, 0.4, 1.0])
def test_pcb_is_the_authors_balance_of_entries(deltas, ratio):
    assert_equal(merged_by("pcb", deltas, ratio=ratio), spectral_textbook.pcb(deltas, WEIGHTS, ratio), 1e-9)


SPECTRAL = ("star", "tsv_m", "iso_c", "iso_cts", "knots_ties", "knots_dare", "core_space", "swudi")


def adapters(count=3, rank=4, out=48, columns=64):
    """LoRA deltas whose singular values span a decade."""
    scale = torch.logspace(0, -1, rank, dtype=torch.float64)
    return [LowRank(1e-3 * noise(out, rank, seed=i) * scale, noise(rank, columns, seed=40 + i)) for i in range(count)]


def stored(deltas, base, dtype):
    """The same deltas after they have been added to the base, kept in this dtype, and taken off again."""
    return [((base + delta.dense()).to(dtype) - base.to(dtype)) for delta in deltas]


@pytest.mark.parametrize("method", SPECTRAL)
def test_lora_experts_merge_the_same_in_float32_and_float64(method):
    deltas, base = adapters(), 0.05 * noise(48, 64, seed=99)
    settings = {"density": 1.0} if "density" in {s.name for s in METHODS[method].settings} else {}
    single = merged_by(method, stored(deltas, base, torch.float32), **settings).double()
    double = merged_by(method, stored(deltas, base, torch.float64), **settings)
    assert (single - double).norm() <= 1e-4 * double.norm()


@pytest.mark.parametrize("method", SPECTRAL[1:])  # STAR is a mean over all experts
def test_an_expert_that_leaves_a_matrix_alone_changes_no_merge_of_the_others(method):
    deltas = [noise(10, 14, seed=i) for i in range(2)]
    alone, beside = layer_of(deltas), layer_of([*deltas, torch.zeros(10, 14).double()])
    assert_equal(METHODS[method](beside).delta, METHODS[method](alone).delta, 1e-9)


@pytest.mark.parametrize("method", SPECTRAL)
def test_a_merge_of_adapters_has_no_higher_rank_than_all_of_them_together(method):
    merged = merged_by(method, adapters())
    values = torch.linalg.svdvals(merged)
    assert (values[12:] < 1e-9 * values[0]).all()


def test_equal_experts_get_one_share_of_rank_each_and_merge_to_their_leading_part():
    tau = noise(9, 12, seed=3)
    u, s, vt = torch.linalg.svd(tau, full_matrices=False)
    assert_equal(METHODS["tsv_m"](layer_of([tau] * 3)).delta, u[:, :3] @ torch.diag(s[:3]) @ vt[:3])


def test_experts_that_cancel_out_leave_the_base():
    tau = noise(9, 12, seed=3)
    for method in ("iso_c", "iso_cts", "knots_ties"):
        merged = METHODS[method](layer_of([tau, -tau]))
        assert merged.delta.norm() <= tau.norm()
    assert METHODS["iso_c"](layer_of([tau, -tau])).delta.abs().max() == 0


def test_the_joint_basis_of_thin_factors_is_that_of_the_whole_matrices():
    thin = adapters()
    basis, values, rows = coordinates(thin)
    whole_basis, whole_values, whole_rows = coordinates([delta.dense() for delta in thin])
    assert torch.allclose(values, whole_values, rtol=1e-7)
    assert torch.allclose(basis @ rows, whole_basis @ whole_rows, atol=1e-12)
    assert torch.allclose(basis.T @ basis, torch.eye(12).double(), atol=1e-12)


def test_triplets_are_the_singular_value_decomposition():
    for matrix in (noise(7, 12, seed=1), noise(12, 7, seed=1), adapters()[0]):
        found = triplets(matrix)
        dense = matrix.dense() if isinstance(matrix, LowRank) else matrix
        assert_equal((found.left * found.values) @ found.right.T, dense, 1e-9)
        for side in (found.left, found.right):
            assert torch.allclose(side.T @ side, torch.eye(len(found.values)).double(), atol=1e-8)


def test_the_polar_factor_of_dependent_columns_stays_in_their_span():
    column = torch.nn.functional.normalize(noise(8, 1, seed=1), dim=0)
    assert_equal(orthogonal(torch.cat([column] * 4, 1)), torch.cat([column / 2] * 4, 1), 1e-12)
