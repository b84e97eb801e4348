"""The moments of channels do not show how they were gathered, and an affine map reaches its goal."""

import pytest
import torch
from making import noise

from mergelab.maths.moments import Moments, affine, dead, mean_of, moments, nothing, variance_kept


def same(one: Moments, other: Moments) -> bool:
    return one.count == other.count and torch.allclose(one.mean, other.mean) and torch.allclose(one.var, other.var)


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (100, 0.1), (1000, 0.5)])
def test_float32_values_have_the_moments_of_two_passes_in_float64(mean, std):
    values = (mean + std * noise(4000, 3)).float()
    exact = values.double()
    found = moments(values)
    assert torch.allclose(found.mean, exact.mean(0), rtol=1e-12)
    assert torch.allclose(found.var, exact.var(0, correction=0), rtol=1e-9)


@pytest.mark.parametrize("sizes", [[100], [1, 99], [33, 1, 66], [50, 0, 50]])
def test_the_cut_into_chunks_does_not_show(sizes):
    values = 7 + noise(100, 5)
    found = nothing(5)
    for chunk in values.split(sizes):
        found = found.joined(moments(chunk))
    assert same(found, moments(values))


def test_a_large_sample_is_cut_by_itself():
    values = 3 + noise(70_000, 16)
    assert torch.allclose(moments(values).var, values.var(0, correction=0), rtol=1e-10)


def test_padding_does_not_count():
    values, mask = noise(3, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    padded = torch.where(mask[..., None], values, 1e6)
    assert same(moments(padded, mask=mask), moments(values[mask]))
    assert moments(values, mask=mask).count == 9


def test_channels_may_stand_anywhere():
    images = noise(2, 3, 4, 5)
    assert same(moments(images, dim=1), moments(images.movedim(1, -1).reshape(-1, 3)))
    heads = noise(2, 3, 4, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert same(moments(heads, mask=mask), moments(heads[mask].reshape(-1, 5)))


def moved(values, map_):
    return values * map_.scale + map_.shift


def test_each_mode_reaches_what_it_promises():
    here, there = moments(2 + 3 * noise(500, 6)), moments(-1 + 0.5 * noise(500, 6, seed=1))
    values = 2 + 3 * noise(500, 6)
    assert same(moments(moved(values, affine(there, here))), there)
    assert torch.allclose(moments(moved(values, affine(there, here, "shift"))).mean, there.mean)
    scaled = affine(there, here, "rms")
    assert torch.allclose(moments(moved(values, scaled)).rms, there.rms) and not scaled.shift.any()


@pytest.mark.parametrize("mode", ["affine", "rms", "shift"])
def test_from_a_sample_to_itself_nothing_changes(mode):
    found = moments(noise(50, 4))
    same = affine(found, found, mode)
    assert (same.scale == 1).all() and (same.shift == 0).all()


def test_a_dead_channel_is_shifted_and_a_goal_that_is_dead_flattens():
    values = noise(100, 4)
    values[:, 0] = 5
    found = affine(moments(values + 1), moments(values))
    assert found.dead == 1 and found.scale[0] == 1 and found.shift[0] == 1
    to_flat = affine(moments(values), moments(noise(100, 4, seed=2)))
    assert to_flat.scale[0] == 0 and to_flat.shift[0] == 5 and to_flat.clamped == 0


def test_a_few_huge_channels_do_not_make_the_others_dead():
    values = noise(100, 9)
    values[:, 0] *= 1e6
    assert not dead(moments(values)).any()


def test_scales_are_clamped_and_counted_and_still_reach_the_mean():
    values, goal = noise(100, 3), 4 + 100 * noise(100, 3, seed=1)
    found = affine(moments(goal), moments(values), clamp=10)
    assert found.clamped == 3 and (found.scale == 10).all()
    assert torch.allclose(moments(moved(values, found)).mean, moments(goal).mean)


def test_what_is_not_finite_is_left_alone_and_counted():
    goal = noise(10, 3)
    goal[0, 1] = float("nan")
    found = affine(moments(goal), moments(noise(10, 3, seed=1)))
    assert found.skipped == 1 and found.scale[1] == 1 and found.shift[1] == 0
    assert not moments(goal).finite


def test_few_rows_are_trusted_less():
    here, there = moments(noise(32, 3)), moments(4 * noise(32, 3, seed=1))
    full, drawn = affine(there, here), affine(there, here, prior=32)
    assert torch.allclose(drawn.scale, full.scale.sqrt())
    assert torch.allclose(moments(moved(noise(32, 3), drawn)).mean, there.mean)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_goal_of_equal_experts_is_the_expert_however_many_they_are(count):
    one = moments(3 + 2 * noise(40, 5))
    goal = mean_of([one] * count)
    assert torch.allclose(goal.mean, one.mean) and torch.allclose(goal.std, one.std)


def test_the_goal_is_the_mean_of_deviations_not_of_variances():
    goal = mean_of([moments(noise(40, 1)), moments(3 * noise(40, 1))])
    assert torch.allclose(goal.std, 2 * moments(noise(40, 1)).std)


def test_the_goal_has_the_weights_of_the_merge():
    one, other = moments(noise(40, 5)), moments(3 + 2 * noise(40, 5, seed=1))
    goal, wanted = mean_of([one, other], [0.3, 0.9]), mean_of([one, other, other, other])
    assert torch.allclose(goal.mean, wanted.mean) and torch.allclose(goal.std, wanted.std)
    assert torch.allclose(mean_of([one, other], [0, 2]).std, other.std)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_average_of_independent_networks_keeps_one_nth_of_the_variance(count):
    inputs = noise(400, 32)
    outputs = torch.stack([inputs @ noise(32, 64, seed=seed + 1) for seed in range(count)])
    kept = moments(outputs.mean(0)).var.mean() / torch.stack([moments(one).var.mean() for one in outputs]).mean()
    assert kept == pytest.approx(variance_kept(count, 0), rel=0.2)
    assert variance_kept(count, 1) == 1
