"""What is random: it is uniform, it depends on names and seed alone, and methods that drop keep what they promise."""

import math
from dataclasses import replace

import families
import pytest
import torch
from making import layer_of, merged, noise, recipe_of, shifted, write_model
from safetensors.torch import load_file

from mergelab import METHODS, plan
from mergelab.maths.noise import bits, key_of, uniform
from mergelab.methods.della import chances

MANY = 200_000


def test_the_numbers_are_those_of_splitmix64():
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [word % 2**64 for word in bits(0, 5, 1234567).tolist()] == wanted


def test_a_number_depends_on_its_place_and_not_on_how_many_are_drawn():
    assert torch.equal(uniform(3_000_000, 5)[1_048_570:1_048_580], uniform(1_048_580, 5)[-10:])


def test_the_numbers_are_uniform_and_those_of_two_keys_have_nothing_in_common():
    one, other = uniform(MANY, key_of(0, "layer", "french")), uniform(MANY, key_of(0, "layer", "german"))
    for drawn in (one, other):
        assert drawn.min() >= 0 and drawn.max() < 1
        assert drawn.mean() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / MANY))
        tenths = torch.histc(drawn, 10, 0, 1)
        assert ((tenths - MANY / 10).square() / (MANY / 10)).sum() < 40  # chi-squared with 9 degrees of freedom
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 5 / math.sqrt(MANY)
    assert torch.corrcoef(torch.stack([one[:-1], one[1:]]))[0, 1].abs() < 5 / math.sqrt(MANY)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_share_of_entries_kept_is_the_density(method, density):
    merged = METHODS[method](layer_of([noise(400, 500, seed=1)]), density=density)
    (kept,) = merged.facts["entries kept"]
    assert kept == pytest.approx(density, abs=5 * math.sqrt(density * (1 - density) / MANY))


def test_without_rescale_dare_keeps_entries_as_they_are():
    layer = layer_of([noise(40, 50, seed=1)])
    delta = METHODS["dare_linear"](layer, density=0.4, rescale=False).delta
    assert set(delta.flatten().tolist()) <= {0.0, *layer.deltas[0].flatten().tolist()}


def test_the_mean_of_dare_over_seeds_is_the_delta_itself():
    layer = layer_of([noise(8, 9, seed=1)])
    draws = torch.stack([METHODS["dare_linear"](replace(layer, seed=seed), density=0.5).delta for seed in range(400)])
    error = (draws.mean(0) - layer.deltas[0]).abs()
    assert (error < 6 * draws.std(0) / math.sqrt(400) + 0.03).all()


def test_della_drops_small_entries_more_often_than_large_ones():
    delta = noise(100, 2000, seed=1)
    probability = chances(delta, 0.5, 0.2)
    assert probability.min() == pytest.approx(0.3) and probability.max() == pytest.approx(0.7)
    assert probability.mean() == pytest.approx(0.5)
    assert torch.equal(probability.argsort(1), delta.abs().argsort(1))
    kept = METHODS["della_linear"](layer_of([delta]), density=0.5, epsilon=0.2, rescale=False).delta != 0
    for low, high in ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 0.7)):
        inside = (probability >= low) & (probability < high)
        assert kept[inside].double().mean() == pytest.approx((low + high) / 2, abs=0.02)


def test_della_makes_an_epsilon_smaller_that_would_leave_zero_to_one():
    probability = chances(noise(3, 50, seed=1), 0.1, 0.3)
    assert probability.min() == 0 and probability.max() == pytest.approx(0.2)
    assert probability.mean() == pytest.approx(0.1)


@pytest.mark.parametrize("method", ["dare_ties", "della", "knots_dare"])
def test_a_recipe_with_a_seed_gives_the_same_bytes_and_another_seed_others(method, trio, tmp_path):
    runs = {}
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        recipe = recipe_of(*trio, method=method, settings={"density": 0.5}, seed=seed)
        runs[name] = merged(recipe, tmp_path / name).sha256
    assert runs["one"] == runs["same"] != runs["other"]


@pytest.mark.parametrize("more", [{}, {"decompose_embeddings": True}])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear", "knots_dare"])
def test_embeddings_and_a_head_that_are_stored_twice_stay_tied_whatever_is_drawn(method, more, tmp_path):
    base = families.model("GPT2LMHeadModel").state_dict()
    for name, seed in (("base", None), ("one", 1), ("other", 2)):
        tensors = base if seed is None else shifted(base, seed)
        tensors |= {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
        write_model(tmp_path / name, tensors, model_type="gpt2")  # which ties them, and does not say so
    recipe = recipe_of(*(tmp_path / n for n in ("base", "one", "other")), method=method, settings={"density": 0.5})
    merged(replace(recipe, **more), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])
    assert not torch.equal(found["lm_head.weight"], base["lm_head.weight"])


def test_the_order_of_the_experts_in_a_recipe_does_not_change_what_is_drawn(trio):
    base, one, other = trio
    for name in ("a.weight", "b.bias"):
        layers = [
            plan(recipe_of(base, *experts, method="dare_linear")).layer(name, "cpu")
            for experts in ((one, other), (other, one))
        ]
        first, second = (METHODS["dare_linear"](layer, density=0.5).delta for layer in layers)
        assert torch.allclose(first, second, rtol=1e-6)
