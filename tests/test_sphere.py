"""The laws of maths/sphere.py and maths/sparse.py: angles, arcs and means on the sphere; entries left out."""

import math

import pytest
import torch
from making import layer_of, noise

from mergelab import METHODS, MergeError
from mergelab.maths import sparse, sphere


def test_a_gram_matrix_in_pieces_is_that_of_the_whole(monkeypatch):
    stack = noise(3, 4, 50)
    whole = torch.einsum("ern,frn->ref", stack, stack)
    for chunk in (1, 40, 64, 10_000):
        monkeypatch.setattr(sphere, "_CHUNK", chunk)
        assert torch.allclose(sphere.gram(stack), whole, rtol=1e-12)
    assert torch.allclose(sphere.whole_gram(stack), whole.sum(0))
    assert torch.allclose(sphere.lengths(stack), whole.sum(0).diagonal().sqrt())


def test_cosines_are_those_of_the_angles_and_zero_beside_a_zero():
    stack = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-2.0, 0.0]])
    wanted = [[1, math.sqrt(0.5), 0, -1], [math.sqrt(0.5), 1, 0, -math.sqrt(0.5)], [0] * 4]
    assert torch.allclose(sphere.cosines(sphere.whole_gram(stack))[:3], torch.tensor(wanted).double())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_an_arc_keeps_the_length_and_divides_the_angle(share):
    one, other = (torch.nn.functional.normalize(noise(20, seed=i), dim=0) for i in (1, 2))
    cosine = one @ other
    first, second = sphere.arc(cosine, share, torch.tensor(False))
    point = first * one + second * other
    assert point.norm() == pytest.approx(1)
    assert float((point @ one).clamp(max=1).acos()) == pytest.approx(share * float(cosine.acos()), abs=1e-7)


def test_nuslerp_of_two_equally_long_changes_is_as_long_as_they_are():
    one, other = (torch.nn.functional.normalize(noise(6, 9, seed=i).flatten(), dim=0).view(6, 9) for i in (1, 2))
    assert METHODS["nuslerp"](layer_of([one, other])).delta.norm() == pytest.approx(1)
    assert METHODS["linear"](layer_of([one, other])).delta.norm() < 0.9
    rows = METHODS["nuslerp"](layer_of([one, other]), nuslerp_flatten=False).delta
    assert torch.allclose(rows[2], METHODS["nuslerp"](layer_of([one[2], other[2]])).delta)


def test_the_karcher_mean_of_points_around_a_pole_is_the_pole():
    turns = [2 * math.pi * i / 5 for i in range(5)]
    points = torch.tensor([[math.sin(1) * math.cos(t), math.sin(1) * math.sin(t), math.cos(1)] for t in turns]).double()
    shares = torch.full((5,), 0.2).double()
    start = torch.tensor([0.5, 0.5, 0, 0, 0]).double()
    mean = sphere.karcher_mean(points @ points.T, shares, 50, 1e-9) @ points
    assert torch.allclose(mean, torch.tensor([0.0, 0, 1]).double(), atol=1e-6)
    assert not torch.allclose(start @ points, mean)


def test_the_karcher_mean_is_where_the_tangents_to_all_models_cancel():
    layer = layer_of([noise(4, 5, seed=i) for i in range(3)])
    point = layer.base + METHODS["karcher"](layer, count_base=False, tol=1e-9, max_iter=100).delta
    point = (point / point.norm()).flatten()
    pull = torch.zeros_like(point)
    for delta in layer.deltas:
        unit = torch.nn.functional.normalize((layer.base + delta).flatten(), dim=0)
        cosine = unit @ point
        pull += cosine.acos() / cosine.acos().sin() * (unit - cosine * point)
    assert pull.norm() < 1e-7


@pytest.mark.parametrize("method", ["multislerp", "nuslerp", "karcher", "slerp"])
def test_changes_that_point_in_opposite_ways_are_no_accident(method):
    tau = noise(3, 4, seed=1)
    for deltas in ([tau, -tau], [tau, -tau, 0 * tau], [-2 * noise(3, 4, seed=99)]):
        if METHODS[method].fewest <= len(deltas) <= (METHODS[method].most or 9):
            assert METHODS[method](layer_of(deltas)).delta.isfinite().all()


def test_multislerp_refuses_weights_that_add_up_to_nothing():
    layer = layer_of([noise(3, 4, seed=i) for i in range(2)], [1.0, -1.0])
    with pytest.raises(MergeError, match="add up to 0"):
        METHODS["multislerp"](layer)
    assert METHODS["multislerp"](layer, normalize_weights=False).delta.isfinite().all()


def test_model_stock_trusts_equal_models_wholly_and_unrelated_ones_not_at_all():
    tau = torch.eye(4).double()
    assert torch.allclose(METHODS["model_stock"](layer_of([tau, tau])).delta, tau)
    apart = [tau * torch.tensor([1.0, 1, 0, 0]), tau * torch.tensor([0.0, 0, 1, 1])]
    assert METHODS["model_stock"](layer_of(apart)).delta.abs().max() == 0


def test_what_is_left_between_outliers_and_small_entries_has_the_asked_number():
    values = noise(10, 20)
    for count, top in ((50, 10), (200, 0), (190, 50), (0, 5), (1, 199)):
        kept = sparse.middling(values, count, top)
        assert int((kept != 0).sum()) == count
        assert int((values.abs() > kept.abs().max()).sum()) == (min(top, 200 - count) if count else 200)


def test_ranks_run_from_zero_to_one_in_each_row():
    ranks = sparse.ranks_in_rows(torch.tensor([[3.0, -1.0, 2.0], [0.0, 5.0, -9.0]]))
    assert ranks.tolist() == [[1.0, 0.0, 0.5], [0.0, 0.5, 1.0]]
    assert sparse.ranks_in_rows(torch.tensor([4.0, 1.0])).tolist() == [1.0, 0.0]
    assert sparse.ranks_in_rows(torch.tensor(4.0)).tolist() == 0.5


def test_consensus_keeps_what_enough_experts_want():
    deltas = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.1])]
    settings = {"mask": 0.4, "lambda": 1.0}
    assert METHODS["consensus"](layer_of(deltas), k=1, **settings).delta.tolist() == pytest.approx([3.0, 1.0, 0.1])
    assert METHODS["consensus"](layer_of(deltas), k=2, **settings).delta.tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert METHODS["consensus"](layer_of(deltas), k=3, **settings).delta.tolist() == pytest.approx([3.0, 0.0, 0.0])


def test_metagpt_weighs_by_squared_length():
    one, other = noise(3, 4, seed=1), 2 * noise(3, 4, seed=2)
    energy = one.square().sum(), other.square().sum()
    wanted = (energy[0] * one + energy[1] * other) / sum(energy)
    assert torch.allclose(METHODS["metagpt"](layer_of([one, other])).delta, wanted)


def test_nearswap_takes_small_changes_whole_and_a_step_of_large_ones():
    delta = METHODS["nearswap"](layer_of([torch.tensor([0.05, -0.1, 0.4, -2.0]).double()]), t=0.1).delta
    assert delta.tolist() == pytest.approx([0.05, -0.1, 0.1, -0.1])


def test_sce_looks_at_entries_in_which_experts_differ():
    deltas = [torch.tensor([1.0, 3.0, 0.5]), torch.tensor([1.0, -1.0, 0.4])]
    assert METHODS["sce"](layer_of(deltas), select_topk=0.5).delta.tolist() == pytest.approx([0.0, 3.0, 0.0])
