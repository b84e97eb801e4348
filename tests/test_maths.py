"""The laws of maths/spectral.py and maths/signs.py."""

import pytest
import torch
from making import noise

from mergelab.maths import signs, spectral
from mergelab.maths.spectral import LowRank

MATRICES = {
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


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_a_product_of_thin_factors_has_the_spectrum_of_its_entries(rank):
    thin = LowRank(noise(9, rank, seed=1), noise(rank, 14, seed=2))
    found, wanted = spectral.factors(thin), spectral.factors(thin.dense())
    assert torch.allclose(found.values, wanted.values, rtol=1e-6)
    for kept in (1, len(found.values)):
        assert torch.allclose(truncated(thin, found, kept), truncated(thin.dense(), wanted, kept))


@each_matrix
def test_keeping_every_direction_gives_the_matrix_back(matrix):
    found = spectral.factors(matrix)
    assert torch.allclose(truncated(matrix, found, len(found.values)), matrix, atol=1e-6)


@each_matrix
def test_truncation_is_the_nearest_matrix_of_that_rank(matrix):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(truncated(matrix, spectral.factors(matrix), 1), s[0] * u[:, :1] @ vt[:1], atol=1e-8)


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


def test_the_effective_rank_of_equal_values_is_their_number():
    assert spectral.effective_rank(torch.ones(5)) == pytest.approx(5)
    assert spectral.effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)


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


def test_a_tie_takes_plus_or_the_sign_of_most():
    total = torch.tensor([0.0, -3.0, -1.0, 2.0])
    assert signs.elected(total, "plus").tolist() == [1, -1, -1, 1]
    assert signs.elected(total, "majority").tolist() == [-1, -1, -1, 1]


def test_conflicts_are_counted_where_anyone_moves():
    stack = torch.tensor([[1.0, 0.0, -1.0, 0.0], [-1.0, 2.0, -1.0, 0.0]])
    assert signs.conflict_share(stack) == pytest.approx(1 / 3)
    assert signs.conflict_share(torch.zeros(2, 3)) == 0
