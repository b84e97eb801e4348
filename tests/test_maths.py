"""The laws of maths/spectral.py and maths/signs.py."""

import pytest
import torch
from making import noise

from mergelab.maths import selection, signs, spectral, subspace
from mergelab.maths.interval import wilson
from mergelab.maths.selection import kth_largest, kth_largest_of_each
from mergelab.maths.spectral import LowRank
from mergelab.method import Layer

MATRICES = {
    "large and wide": noise(70, 90),
    "large and tall": noise(3000, 70),
    "large, rank 5": noise(70, 5, seed=1) @ noise(5, 80, seed=2),
    "large, orthogonal": torch.linalg.qr(noise(80, 80)).Q,
    "large, one value seven times": torch.block_diag(torch.linalg.qr(noise(7, 7)).Q, 0.1 * noise(70, 80)),
    "wide": noise(5, 17),
    "tall": noise(17, 5),
    "square": noise(9, 9),
    "one row": noise(1, 6),
    "rank 2 of 8": noise(8, 2, seed=1) @ noise(2, 12, seed=2),
}
each_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)


def truncated(matrix, factors, rank):
    return spectral.leading(matrix, factors, rank).dense()


@each_matrix
def test_factors_are_those_of_the_whole_svd(matrix):
    found = spectral.factors(matrix)
    values = torch.linalg.svdvals(matrix)
    rank = len(found.values)
    assert torch.allclose(found.values, values[:rank], rtol=1e-6)
    assert (values[rank:] < 1e-6 * values[0]).all()
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(rank).double(), atol=1e-9)


@each_matrix
@pytest.mark.parametrize("share", [0.0, 0.1, 0.45, 1.0])
def test_the_leading_vectors_alone_are_those_among_all(matrix, share):
    every, some = spectral.factors(matrix), spectral.factors(matrix, lambda values: round(share * len(values)))
    count = round(share * len(every.values))
    assert some.vectors.shape[1] == count
    assert torch.allclose(some.values, every.values, rtol=1e-9)
    kept = torch.diag(every.values[:count] ** 2)  # vectors of equal values may be turned: what they diagonalise may not
    image = matrix.T @ some.vectors if some.left else matrix @ some.vectors
    assert torch.allclose(image.T @ image, kept, atol=1e-9)


def test_no_vectors_are_computed_where_the_spectrum_is_all_that_is_wanted():
    assert spectral.factors(noise(60, 90), spectral.no_vectors).vectors.shape == (60, 0)


def test_a_zero_matrix_costs_nothing():
    assert spectral.factors(torch.zeros(60, 90)).road == "zero"


@pytest.mark.parametrize("kind", ["square", "wide", "tall", "an adapter stored in full", "an adapter"])
def test_a_bfloat16_delta_is_factorised_as_exactly_as_its_entries_in_float64(kind):
    shape = {"wide": (60, 200), "tall": (200, 60)}.get(kind, (90, 90))
    entries = noise(shape[0], 4, seed=1) @ noise(4, shape[1], seed=2) if "adapter" in kind else noise(*shape)
    thin = LowRank(noise(90, 4, seed=1).bfloat16(), noise(4, 90, seed=2).bfloat16())
    matrix = thin if kind == "an adapter" else entries.bfloat16()
    exact = spectral.dense(matrix.to(torch.float64))
    u, s, vt = torch.linalg.svd(exact)
    found = spectral.leading(matrix, spectral.factors(matrix, lambda values: 3), 3).dense()
    assert torch.linalg.vector_norm(found - u[:, :3] * s[:3] @ vt[:3]) < 5e-7 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_a_product_of_thin_factors_has_the_spectrum_of_its_entries(rank):
    thin = LowRank(noise(9, rank, seed=1), noise(rank, 14, seed=2))
    found, wanted = spectral.factors(thin), spectral.factors(thin.dense())
    assert torch.allclose(found.values, wanted.values, rtol=1e-6)
    for kept in (1, len(found.values)):
        assert torch.allclose(truncated(thin, found, kept), truncated(thin.dense(), wanted, kept))


@pytest.mark.parametrize(("apart", "road"), [(1, "Cholesky"), (1e-5, "QR"), (0, "QR")])
def test_thin_factors_whose_columns_are_nearly_dependent_have_orthonormal_vectors_all_the_same(apart, road):
    left = noise(80, 4, seed=1)
    left[:, 3] = left[:, 0] + apart * left[:, 3]
    thin = LowRank(left, noise(4, 90, seed=2))
    found = spectral.factors(thin)
    exact = torch.linalg.svdvals(thin.dense())[: len(found.values)]
    assert found.road.startswith(road) and len(found.values) == (4 if apart else 3)
    assert torch.allclose(found.values, exact, rtol=1e-6, atol=1e-8 * float(exact[0]))
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(len(exact)).double(), atol=1e-9)


@each_matrix
def test_keeping_every_direction_gives_the_matrix_back(matrix):
    found = spectral.factors(matrix)
    assert torch.allclose(truncated(matrix, found, len(found.values)), matrix, atol=1e-6)


@each_matrix
def test_truncation_is_the_nearest_matrix_of_that_rank(matrix):
    left_out = torch.linalg.svdvals(matrix)[1:].norm()
    kept = truncated(matrix, spectral.factors(matrix), 1)
    assert torch.linalg.matrix_rank(kept) == 1
    assert torch.allclose((matrix - kept).norm(), left_out, atol=1e-8)


def test_a_zero_matrix_has_no_singular_values():
    found = spectral.factors(torch.zeros(4, 6))
    assert len(found.values) == 0
    assert spectral.rank_keeping(found.values, 0.4) == 0
    assert spectral.effective_rank(found.values) == 0
    assert (truncated(torch.zeros(4, 6), found, 0) == 0).all()


def test_the_rank_is_the_smallest_whose_values_sum_to_the_share():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0])
    shares = torch.tensor([0.0, 0.4, 0.41, 0.7, 0.9, 0.91, 1.0], dtype=torch.float64)
    assert spectral.ranks_keeping(values, shares).tolist() == [1, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("count", [4, 10, 30, 100])
def test_of_equal_values_a_share_keeps_just_so_many(count):
    turned = torch.linalg.qr(noise(count, count)).Q @ torch.linalg.qr(noise(count, count, seed=1)).Q
    for values in (torch.full((count,), 0.1), spectral.factors(0.3 * turned).values):
        shares = torch.arange(1, count + 1, dtype=torch.float64) / count
        assert spectral.ranks_keeping(values, shares).tolist() == list(range(1, count + 1))
        assert [spectral.rank_keeping(values, k / count) for k in range(1, count + 1)] == list(range(1, count + 1))


def test_the_effective_rank_of_equal_values_is_their_number():
    assert spectral.effective_rank(torch.ones(5)) == pytest.approx(5)
    assert spectral.effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)


def test_weighted_sums_do_not_mind_how_a_matrix_is_held():
    thin = [LowRank(noise(9, 2, seed=i), noise(2, 7, seed=5 + i)) for i in range(2)]
    held = [thin[0], noise(9, 7, seed=8), thin[1], noise(9, 7, seed=9)]
    for matrices in (held, held[1::2], thin):
        wanted = sum(w * spectral.dense(matrix) for w, matrix in zip((1.0, 0.5, -2.0, 3.0), matrices))
        assert torch.allclose(spectral.weighted_sum(matrices, (1.0, 0.5, -2.0, 3.0)), wanted)


def test_factors_of_several_matrices_are_those_of_each():
    thin = [LowRank(noise(40, 3, seed=i), noise(3, 30, seed=9 + i)) for i in range(3)]
    weak = LowRank(noise(40, 1, seed=4) @ torch.ones(1, 3, dtype=torch.float64), noise(3, 30, seed=5))
    none = LowRank(torch.zeros(40, 3, dtype=torch.float64), noise(3, 30, seed=5))
    full, wide, broad = noise(40, 30), LowRank(noise(30, 3), noise(3, 40)), LowRank(noise(40, 35), noise(35, 30))
    for group in ([*thin, full, wide], [thin[0], weak, none, thin[1]], [broad, broad, *thin], [wide, wide], []):
        for wanted in (None, lambda values: 2, spectral.no_vectors):
            found = spectral.factors_of_each(group, wanted)
            assert len(found) == len(group)
            for one, matrix in zip(found, group):
                alone, whole = spectral.factors(matrix, wanted), spectral.dense(matrix)
                assert one.left == alone.left == (matrix.shape[0] <= matrix.shape[1])
                assert torch.allclose(one.values, alone.values, rtol=1e-9) and one.vectors.shape == alone.vectors.shape
                image = one.vectors.T @ (whole if one.left else whole.T)
                assert torch.allclose(image.norm(dim=1), one.values[: len(image)], rtol=1e-7)
                product = one.vectors.T @ one.vectors
                assert torch.allclose(product, torch.eye(len(product)).double(), atol=1e-7)


@pytest.mark.parametrize("size", [1e-6, 1e-3])
def test_the_joint_factors_of_tall_matrices_are_orthonormal_where_values_are_weak(size):
    matrices = [noise(60, 7), size * noise(60, 7, seed=1)]
    found = spectral.joint_factors(matrices)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(14).double(), atol=1e-6)
    assert torch.allclose(found.values, torch.linalg.svdvals(torch.cat(matrices, 1)), rtol=1e-3)


@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 5, 2), (4, 4, 4)])
def test_the_joint_factors_of_thin_products_are_those_of_their_entries(ranks):
    thin = [LowRank(noise(9, rank, seed=i), noise(rank, 14, seed=5 + i)) for i, rank in enumerate(ranks)]
    found, wanted = spectral.joint_factors(thin), spectral.joint_factors([matrix.dense() for matrix in thin])
    assert torch.allclose(found.values, wanted.values, rtol=1e-6)
    assert torch.allclose(found.vectors @ found.vectors.T, wanted.vectors @ wanted.vectors.T, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 7), (30, 4), (12, 4)])
def test_the_joint_factors_are_those_of_the_concatenation(shape):
    matrices = [noise(*shape, seed=i) for i in range(3)]
    found = spectral.joint_factors(matrices)
    u, s, _ = torch.linalg.svd(torch.cat(matrices, 1), full_matrices=False)
    assert torch.allclose(found.values, s)
    assert torch.allclose(found.vectors @ found.vectors.T, u @ u.T, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 3, 6, 9])
def test_trimming_keeps_the_largest_entries(count):
    values = torch.tensor([[3.0, -6.0, 1.0], [-2.0, 5.0, 4.0]])
    kept = signs.trimmed(values, count)
    assert int((kept != 0).sum()) == min(count, 6)
    assert sorted(kept[kept != 0].abs().tolist()) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0][6 - min(count, 6) :]


def test_entries_that_tie_with_the_last_one_are_kept():
    assert signs.trimmed(torch.tensor([2.0, -2.0, 1.0]), 1).tolist() == [2.0, -2.0, 0.0]


def sparse(values):
    return torch.where(noise(*values.shape, seed=5) < -1, values, 0)


@pytest.mark.parametrize("kind", [lambda v: v, lambda v: v.bfloat16().float(), sparse, lambda v: v.sign()])
@pytest.mark.parametrize("share", [1e-5, 0.01, 0.2, 0.77, 1.0])
def test_the_kth_largest_is_found_exactly_among_many(kind, share):
    values = kind(noise(300, 701, dtype=torch.float32)).abs()
    k = max(1, int(share * values.numel()))
    assert kth_largest(values, k) == values.flatten().sort(descending=True).values[k - 1]
    assert kth_largest(values.T.double(), k) == kth_largest(values, k)


@pytest.mark.parametrize("kind", [lambda v: v, lambda v: v.bfloat16().float(), sparse])
def test_the_kth_largest_of_lists_that_come_in_pieces_is_that_of_the_whole_lists(kind):
    lists = [kind(noise(301, 700, seed=i, dtype=torch.float32)).abs() for i in range(3)]
    cuts, counts = [1, 7, 200, 93], [1, 40_000, 301 * 700]
    found = kth_largest_of_each(lambda: zip(*[values.split(cuts) for values in lists]), counts, 301 * 700)
    assert found == [kth_largest(values, k) for values, k in zip(lists, counts)]


@pytest.mark.parametrize("size", [700, 2**18])
def test_the_kth_largest_magnitude_is_that_of_the_numbers_without_their_signs(size):
    lists = [noise(size, seed=i, dtype=torch.float32) for i in range(2)]
    lists[1][:: selection.stride_of(size)] = -9.0  # all that the sample sees: a plain selection is made
    before, walks = [values.clone() for values in lists], []

    def walk():
        walks.append(1)
        return zip(*[values.split(90_000) for values in lists])

    counts = [size // 5, size // 2]
    found = kth_largest_of_each(walk, counts, size, magnitudes=True)
    assert len(walks) == (1 if size < selection.FEW else 3), "each reads all experts from the disk"
    assert found == [kth_largest(values.abs(), k) for values, k in zip(lists, counts)]
    assert all(map(torch.equal, lists, before))


@pytest.mark.parametrize("one_by_one", [0, 700, 10**9])
def test_the_kth_largest_is_found_however_few_candidates_are_held_as_they_are(monkeypatch, one_by_one):
    monkeypatch.setattr(selection, "ONE_BY_ONE", one_by_one)
    values = (noise(301, 700) * 8).round().float()  # a dozen numbers, each there thousands of times
    for k in (1, 40_000, 105_350, 301 * 700):
        assert kth_largest(values, k) == values.flatten().sort(descending=True).values[k - 1]


def test_the_kth_largest_is_found_where_the_sample_misleads():
    values = torch.ones(2**17)
    values[:: selection.stride_of(len(values))] = 5.0  # all that the sample sees
    assert kth_largest(values, len(values) // 2) == 1
    values[:] = torch.arange(len(values)).float() ** 3
    assert kth_largest(values, 5) == (len(values) - 5.0) ** 3


@pytest.mark.parametrize("size", [0, 5, 2**16, 2**17 + 3])
def test_blocks_are_views_of_all_entries_in_order(size):
    one, other = torch.zeros(size), torch.arange(float(size))
    for target, part in signs.blocks(one, other):
        target.copy_(part)
    assert torch.equal(one, other)


def test_a_tie_takes_plus_or_the_sign_of_most():
    total = torch.tensor([0.0, -3.0, -1.0, 2.0])
    assert signs.elected(total, "plus").tolist() == [1, -1, -1, 1]
    assert signs.elected(total, "majority").tolist() == [-1, -1, -1, 1]


def test_conflicts_are_counted_where_anyone_moves():
    stack = torch.tensor([[1.0, 0.0, -1.0, 0.0], [-1.0, 2.0, -1.0, 0.0]])
    assert signs.conflict_share(stack) == pytest.approx(1 / 3)
    assert signs.conflict_share(torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("failing", [1, 2])
def test_a_polar_factor_is_found_though_lapacks_decomposition_does_not_converge(monkeypatch, failing):
    vectors = torch.cat([noise(40, 12), noise(40, 12)[:, :3] + 0.1 * noise(40, 3, seed=1)], 1)
    wanted, plain, calls = subspace.orthogonal(vectors), torch.linalg.svd, []

    def svd(matrix, **how):
        calls.append(matrix)
        if len(calls) <= failing:
            raise torch.linalg.LinAlgError("did not converge")
        return plain(matrix, **how)

    monkeypatch.setattr(torch.linalg, "svd", svd)
    assert torch.allclose(subspace.orthogonal(vectors), wanted, atol=1e-9)
    assert len(calls) == 2


def test_a_sum_is_divided_by_its_weights_unless_they_cancel():
    mass = torch.tensor([2.0, -0.5, 0.0, 1e-8, 0.9e-8, -0.9e-8])
    assert signs.divided(torch.full_like(mass, 3.0), mass).tolist() == pytest.approx([1.5, -6, 3, 3e8, 3, 3])


@pytest.mark.parametrize("shape", [(70, 90), (90, 70)], ids=str)
def test_what_a_layer_has_projected_for_other_ranks_is_taken_over_and_changes_no_bit(shape):
    deltas = tuple(noise(*shape, seed=seed, dtype=torch.float32) for seed in range(2))
    layer = Layer("matrix", torch.zeros(shape), deltas, torch.ones(2), decompose=True)
    factors = layer.factors()
    for ranks in ([3, 39], [2, 33], [0, 16], [40, 1], [17, 48], [17, 70]):
        found = layer.leading(factors, ranks, [1.0, 0.5])
        wanted = list(map(spectral.leading, deltas, factors, ranks, [1.0, 0.5]))
        assert all(torch.equal(one.dense(), other.dense()) for one, other in zip(found, wanted))
        assert [part.left.shape[1] for part in found] == ranks
        exact = [f.vectors[:, :r] @ f.vectors[:, :r].T for f, r in zip(factors, ranks)]
        for part, delta, inside, gain in zip(found, deltas, exact, [1.0, 0.5]):
            near = inside @ delta.double() if factors[0].left else delta.double() @ inside
            assert torch.allclose(part.dense().double(), gain * near, atol=1e-5)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (250, 500, 0.4563, 0.5437)],
)
def test_wilsons_interval_is_that_of_the_textbooks(right, count, low, high):
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)
    assert 0 <= wilson(right / count, count)[0] <= wilson(right / count, count)[1] <= 1
