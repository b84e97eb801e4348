"""LoRA adapters are the deltas that their configuration says, by arithmetic done here by hand in float64."""

import math

import pytest
import torch
from making import finished, merged, noise, recipe_of, shifted, tiny, write_adapter, write_model

from mergelab import MergeError, inspect, plan
from mergelab.files.adapter import _patterned
from mergelab.files.checkpoint import Checkpoint
from mergelab.maths.spectral import dense

A, B = noise(2, 8, seed=1), noise(6, 2, seed=2)  # for 'a.weight', (6, 8)
PAIR = {"a.lora_A.weight": A.float(), "a.lora_B.weight": B.float()}


def delta(folder, tmp_path, name="a.weight", base=None):
    """What one expert adds to a tensor of the base."""
    if base is None:
        base = write_model(tmp_path / "base", tiny())
    layer = plan(recipe_of(base, folder)).layer(name, "cpu")
    return layer.dense[0].double()


@pytest.mark.parametrize(
    "config, scale",
    {
        "plain": ({"r": 2, "lora_alpha": 4}, 4 / 2),
        "alpha left out": ({"lora_alpha": 8}, 8 / 2),
        "rsLoRA": ({"lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(2)),
        "rank pattern": ({"r": 64, "rank_pattern": {"a": 2}, "lora_alpha": 4}, 4 / 2),
        "alpha pattern": ({"lora_alpha": 4, "alpha_pattern": {"b": 5, "^a": 16, "a": 7}}, 16 / 2),
        "alpha pattern of another": ({"lora_alpha": 4, "alpha_pattern": {"aa": 16}}, 4 / 2),
        "rsLoRA with a pattern": ({"use_rslora": True, "alpha_pattern": {"a": 16}}, 16 / math.sqrt(2)),
    }.values(),
)
def test_the_scale_is_that_of_the_configuration(tmp_path, config, scale):
    folder = write_adapter(tmp_path / "lora", PAIR, **config)
    assert torch.allclose(delta(folder, tmp_path), scale * B @ A, atol=1e-5)


@pytest.mark.parametrize("name", ["a.lora_{}.weight", "a.lora_{}.default.weight"])
def test_names_may_hold_the_adapters_own_name(tmp_path, name):
    pair = {name.format("A"): A.float(), name.format("B"): B.float()}
    folder = write_adapter(tmp_path / "lora", pair)
    assert torch.allclose(delta(folder, tmp_path), 2 * B @ A, atol=1e-5)


@pytest.mark.parametrize("flag", [True, False])
def test_a_conv1d_is_transposed_whatever_the_flag_says(tmp_path, flag):
    base = write_model(tmp_path / "base", {"a.weight": noise(8, 6).float()})  # (in, out)
    folder = write_adapter(tmp_path / "lora", PAIR, fan_in_fan_out=flag)
    assert torch.allclose(delta(folder, tmp_path, base=base), 2 * (B @ A).T, atol=1e-5)


@pytest.mark.parametrize("flag", [True, False])
def test_a_square_conv1d_is_transposed_if_the_flag_says_so(tmp_path, flag):
    base = write_model(tmp_path / "base", {"a.weight": noise(6, 6).float()})
    square = noise(2, 6, seed=3)
    pair = {"a.lora_A.weight": square.float(), "a.lora_B.weight": B.float()}
    folder = write_adapter(tmp_path / "lora", pair, fan_in_fan_out=flag)
    wanted = 2 * B @ square
    assert torch.allclose(delta(folder, tmp_path, base=base), wanted.T if flag else wanted, atol=1e-5)


def test_an_adapted_embedding_is_transposed(tmp_path):
    pair = {"embed.lora_embedding_A": noise(2, 11, seed=1), "embed.lora_embedding_B": noise(6, 2, seed=2)}
    folder = write_adapter(tmp_path / "lora", {name: tensor.float() for name, tensor in pair.items()})
    wanted = 2 * (pair["embed.lora_embedding_B"] @ pair["embed.lora_embedding_A"]).T
    assert torch.allclose(delta(folder, tmp_path, "embed.weight"), wanted, atol=1e-5)


@pytest.mark.parametrize("key", ["b.{}", "b.modules_to_save.{}", "b.modules_to_save.default.{}", "b.base_layer.{}"])
def test_modules_stored_whole_replace_the_bases(tmp_path, key):
    saved = {key.format("weight"): noise(8, 6, seed=8).float(), key.format("bias"): noise(8, seed=9).float()}
    folder = write_adapter(tmp_path / "lora", PAIR | saved, modules_to_save=["b"])
    base = write_model(tmp_path / "base", tiny())
    for part, tensor in (("weight", noise(8, 6, seed=8)), ("bias", noise(8, seed=9))):
        wanted = tensor - tiny()[f"b.{part}"].double()
        assert torch.allclose(delta(folder, tmp_path, f"b.{part}", base), wanted, atol=1e-6)


def test_an_adapted_module_that_is_stored_whole_as_well_is_both(tmp_path):
    base = write_model(tmp_path / "base", tiny())
    folder = write_adapter(tmp_path / "lora", PAIR | {"a.base_layer.weight": noise(6, 8, seed=8).float()})
    wanted = noise(6, 8, seed=8) - tiny()["a.weight"].double() + 2 * B @ A
    assert torch.allclose(delta(folder, tmp_path, base=base), wanted, atol=1e-5)


def test_tensors_that_an_adapter_leaves_alone_have_a_delta_of_zero(tmp_path):
    base, folder = write_model(tmp_path / "base", tiny()), write_adapter(tmp_path / "lora", PAIR)
    report = finished(inspect(plan(recipe_of(base, folder, method="star"))))
    assert {layer.name: layer.equal_to_base for layer in report.layers} == {
        name: () if name == "a.weight" else ("lora",) for name in tiny() if name != "steps"
    }


def test_an_adapter_upon_another_checkpoint_adds_to_that_ones_delta(tmp_path):
    base, expert = write_model(tmp_path / "base", tiny()), write_model(tmp_path / "expert", shifted(tiny(), 3))
    folder = write_adapter(tmp_path / "lora", PAIR | {"b.bias": noise(8, seed=9).float()})
    own = shifted(tiny(), 3)["a.weight"].double() - tiny()["a.weight"].double()
    assert torch.allclose(delta(f"{expert}+{folder}", tmp_path, base=base), own + 2 * B @ A, atol=1e-5)
    assert torch.allclose(delta(f"{base}+{folder}", tmp_path, base=base), 2 * B @ A, atol=1e-5)
    bias = noise(8, seed=9) - tiny()["b.bias"].double()
    assert torch.allclose(delta(f"{expert}+{folder}", tmp_path, "b.bias", base), bias, atol=1e-5)


def test_adapters_in_half_precision_are_added_in_full(tmp_path):
    folder = write_adapter(tmp_path / "lora", {name: tensor.bfloat16() for name, tensor in PAIR.items()})
    wanted = 2 * B.bfloat16().double() @ A.bfloat16().double()
    assert torch.allclose(delta(folder, tmp_path), wanted, atol=1e-5)


def test_adapters_merge_with_full_experts_as_their_own_full_model_would(tmp_path):
    base, folder = write_model(tmp_path / "base", tiny()), write_adapter(tmp_path / "lora", PAIR)
    expert = write_model(tmp_path / "expert", shifted(tiny(), 3))
    merged(recipe_of(base, folder), tmp_path / "full")
    for method in ("star", "drm_v", "ties"):
        merged(recipe_of(base, folder, expert, method=method), tmp_path / f"{method}-thin")
        merged(recipe_of(base, tmp_path / "full", expert, method=method), tmp_path / f"{method}-full")
        thin, full = (Checkpoint(tmp_path / f"{method}-{kind}", kind)["a.weight"] for kind in ("thin", "full"))
        assert torch.allclose(thin, full, atol=1e-5)


def test_an_adapter_that_names_another_base_is_remarked_upon(tmp_path):
    base = write_model(tmp_path / "base", tiny())
    other = write_adapter(tmp_path / "other", PAIR, base_model_name_or_path="org/something")
    same = write_adapter(tmp_path / "same", PAIR, base_model_name_or_path="org/base")
    said = f"Expert 'other' says it was trained on 'org/something'; the base is '{base}'."
    assert plan(recipe_of(base, same, other)).notes == (said,)


@pytest.mark.parametrize("flipped", [False, True])
def test_dora_is_each_output_brought_to_its_trained_length(tmp_path, flipped):
    start, length = noise(6, 8, seed=7), 1 + noise(6, seed=9).abs()
    base = write_model(tmp_path / "base", {"a.weight": (start.T if flipped else start).float()})
    folder = write_adapter(tmp_path / "lora", PAIR | {"a.lora_magnitude_vector": length.float()}, use_dora=True)
    moved = start + 2 * B @ A
    wanted = length[:, None] * moved / moved.norm(dim=1, keepdim=True) - start
    assert torch.allclose(delta(folder, tmp_path, base=base), wanted.T if flipped else wanted, atol=1e-5)


@pytest.mark.parametrize("flipped", [False, True])
def test_dora_on_a_table_that_is_merged_in_parts_is_as_on_the_whole(tmp_path, monkeypatch, flipped):
    monkeypatch.setattr("mergelab.planning.parts.PART", 8)
    start = noise(6, 8, seed=7)
    base = write_model(tmp_path / "base", {"embed_a.weight": (start.T if flipped else start).float()})
    pair = {f"embed_{key}": tensor for key, tensor in PAIR.items()}
    folder = write_adapter(tmp_path / "lora", pair | {"embed_a.lora_magnitude_vector": 1 + noise(6, seed=9).abs()})
    merged(recipe_of(base, folder), tmp_path / "out")
    wanted = start.T if flipped else start
    wanted = wanted + delta(folder, tmp_path, "embed_a.weight", base)
    assert torch.allclose(Checkpoint(tmp_path / "out", "out")["embed_a.weight"].double(), wanted, atol=1e-5)


def test_dora_on_an_embedding_brings_its_columns_to_their_length(tmp_path):
    base, length = write_model(tmp_path / "base", tiny()), 1 + noise(6, seed=9).abs()
    pair = {"embed.lora_embedding_A": noise(2, 11, seed=1), "embed.lora_embedding_B": noise(6, 2, seed=2)}
    folder = write_adapter(tmp_path / "lora", pair | {"embed.lora_magnitude_vector.weight": length}, use_dora=True)
    start = tiny()["embed.weight"].double()
    moved = start + 2 * (noise(6, 2, seed=2) @ noise(2, 11, seed=1)).T
    wanted = length * moved / moved.norm(dim=0, keepdim=True) - start
    assert torch.allclose(delta(folder, tmp_path, "embed.weight", base), wanted, atol=1e-5)


def test_a_trained_bias_of_b_is_scaled_as_b_is(tmp_path):
    base, bias = write_model(tmp_path / "base", tiny()), noise(8, seed=5)
    pair = {"b.lora_A.weight": noise(2, 6).float(), "b.lora_B.weight": noise(8, 2).float()}
    folder = write_adapter(tmp_path / "lora", pair | {"b.lora_B.bias": bias.float()}, lora_bias=True)
    assert torch.allclose(delta(folder, tmp_path, "b.bias", base), 2 * bias, atol=1e-5)


def test_an_adapter_upon_a_model_of_other_names_changes_the_tensors_that_it_means(tmp_path):
    own = {f"layers.0.{name}.weight": noise(6, 8, seed=i).float() for i, name in enumerate("wvu")}
    base = write_model(tmp_path / "base", {f"m.{name}": tensor for name, tensor in own.items()})
    expert = write_model(tmp_path / "expert", own)
    pair = {"lora_A": noise(2, 8, seed=5).float(), "lora_B": noise(6, 2, seed=6).float()}
    adapter = write_adapter(tmp_path / "lora", {f"layers.0.w.{part}.weight": t for part, t in pair.items()})
    found = plan(recipe_of(base, f"{expert}+{adapter}")).delta("m.layers.0.w.weight", 0, "cpu")
    assert torch.allclose(dense(found), 2 * pair["lora_B"] @ pair["lora_A"], atol=1e-5)


def test_an_adapter_that_changes_a_table_of_another_vocabulary_is_refused(tmp_path):
    base, own = write_model(tmp_path / "base", tiny()), tiny()
    own["embed.weight"] = noise(13, 6).float()
    expert = write_model(tmp_path / "expert", own)
    pair = {"lora_A": noise(2, 6).float(), "lora_B": noise(13, 2).float()}
    adapter = write_adapter(tmp_path / "lora", {f"embed.{part}.weight": tensor for part, tensor in pair.items()})
    with pytest.raises(MergeError, match=r"The adapter of expert '.*' changes 'embed.weight', which does not fit"):
        plan(recipe_of(base, f"{expert}+{adapter}", vocabulary="common"))


@pytest.mark.parametrize("key", [".?" * 31 + "x", "(a|a)" * 31, ".*.*.*x", "(a+)+x", "a" * 301])
def test_patterns_that_could_take_for_ever_are_refused_at_once(key):
    with pytest.raises(MergeError, match="in too many ways to try"):
        _patterned("rank_pattern", {key: 1}, "m" * 40)


@pytest.mark.parametrize("key", ["q_proj", r"layers\.\d+\..*q_proj", "(q|k|v|o|gate|up|down)_proj", ".*attn.*"])
def test_patterns_that_people_write_are_taken(key):
    assert _patterned("rank_pattern", {key: 7}, "model.layers.3.self_attn.q_proj") == 7
    with pytest.raises(MergeError, match="in too many ways to try"):
        _patterned("rank_pattern", {key: 7}, "m" * 301)
