"""A repaired model has the moments of its goal at every site, whatever its architecture and its data's padding."""

import dataclasses
import sys

import families
import pytest
import torch
from families import CONFIGS, average, batch, logits, model

from mergelab.errors import MergeError
from mergelab.maths.moments import variance_kept
from mergelab.repair import How, Patch, applied, fit, mean_goals, repair, sites, statistics

FREE = How(clamp=1e9)


def fitted(name, how=FREE, preset="foldable", **about):
    merged, given = average(name), [batch(name)]
    where = sites(merged, preset)
    goals = statistics(model(name, 1), given, where)
    return merged, given, where, goals, fit(merged, goals, given, where, how=how, **about)


def far(found, goals):
    """The largest distance of a channel's mean or deviation from its goal, in deviations of its site."""
    return max(
        float(torch.maximum((found[n].mean - g.mean).abs(), (found[n].std - g.std).abs()).max() / g.std.mean())
        for n, g in goals.items()
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_after_a_repair_the_moments_at_every_site_are_the_goals(name):
    merged, given, where, goals, patch = fitted(name)
    assert patch.counts == {"dead": 0, "clamped": 0, "skipped": 0}
    assert list(patch.sites) == list(goals) and not patch.notes
    with applied(merged, patch):
        assert far(statistics(merged, given, where), goals) < 1e-4
    assert far(statistics(merged, given, where), goals) > 0.1


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "ViTForImageClassification"])
def test_corrections_that_are_all_measured_before_any_is_made_miss_the_goals(name):
    merged, given, where, goals, patch = fitted(name)
    alone = {n: fit(merged, goals, given, [s], how=FREE).sites[n] for n, s in ((s.name, s) for s in where)}
    with applied(merged, dataclasses.replace(patch, sites={n: alone[n] for n in patch.sites})):
        assert far(statistics(merged, given, where), goals) > 0.1


@pytest.mark.parametrize("preset", ["branches", "norms", "official"])
@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", "BertForMaskedLM"]
)
def test_every_preset_reaches_its_goals(name, preset):
    merged, given, where, goals, patch = fitted(name, preset=preset)
    with applied(merged, patch):
        assert far(statistics(merged, given, where), goals) < 1e-4


@pytest.mark.parametrize("how", [FREE, dataclasses.replace(FREE, at_once=False)], ids=["at once", "in parts"])
def test_the_output_of_a_whole_model_below_the_head_is_a_site_too(how):
    merged, given, where, goals, patch = fitted("LlamaForCausalLM", how, "model|out")
    assert list(patch.sites) == ["model|out"]
    with applied(merged, patch):
        assert far(statistics(merged, given, where), goals) < 1e-4


@pytest.mark.parametrize("site", ["|out", "model|in", "model.embed_tokens|in"])
def test_what_is_no_tensor_of_activations_is_no_site(site):
    with pytest.raises(MergeError, match="is no tensor of activations. Name the output of a module inside"):
        statistics(model("LlamaForCausalLM"), [batch("LlamaForCausalLM")], sites(model("LlamaForCausalLM"), site))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_repair_of_a_model_by_itself_changes_nothing(name):
    whole, given = model(name), [batch(name)]
    where = sites(whole)
    patch = fit(whole, statistics(whole, given, where), given, where)
    for one in patch.sites.values():
        assert torch.allclose(one.scale, torch.ones(1), atol=1e-5) and one.shift.abs().max() < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_samples_in_parts_give_the_same_patch(name):
    merged, (whole,), where, goals, at_once = fitted(name)
    parts = [{key: tensor[rows] for key, tensor in whole.items()} for rows in (slice(0, 3), slice(3, 8))]
    for how in (FREE, dataclasses.replace(FREE, at_once=False)):
        patch = fit(merged, goals, parts, where, how=how)
        assert patch.tokens == at_once.tokens and patch.samples == 8
        for n, one in patch.sites.items():
            assert torch.allclose(one.scale, at_once.sites[n].scale, rtol=1e-4), n
            assert torch.allclose(one.shift, at_once.sites[n].shift, atol=1e-4), n
    assert all("forward" not in module.__dict__ for module in merged.modules())


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration", "BertForMaskedLM"])
def test_a_padded_batch_has_the_statistics_of_its_rows_one_by_one(name):
    whole, given = model(name), batch(name)
    where = sites(whole)
    alone = []
    for row in range(8):
        one = {key: tensor[row : row + 1] for key, tensor in given.items()}
        for kind in ("", "decoder_"):
            if f"{kind}attention_mask" in one:
                length = int(one[f"{kind}attention_mask"].sum())
                one |= {f"{kind}{key}": one[f"{kind}{key}"][:, :length] for key in ("input_ids", "attention_mask")}
        alone.append(one)
    assert far(statistics(whole, alone, where), statistics(whole, [given], where)) < 1e-4


def test_the_first_position_can_be_left_out_where_the_stream_is_written():
    whole, given = model("LlamaForCausalLM"), [batch("LlamaForCausalLM")]
    where = sites(whole)
    found, every = (statistics(whole, given, where, drop_first=drop) for drop in (True, False))
    fewer = {n for n in found if found[n].count < every[n].count}
    assert fewer == {site.name for site in where if site.module.endswith(("o_proj", "down_proj"))}
    assert all(every[n].count - found[n].count == 8 for n in fewer)


def test_repair_of_three_equal_experts_has_the_goal_of_one():
    whole, given = model("LlamaForCausalLM"), [batch("LlamaForCausalLM")]
    one = statistics(whole, given, sites(whole))
    assert far(mean_goals([one, one, one]), one) < 1e-12


def test_generation_under_a_patch_is_that_of_a_model_without_cache():
    merged, given, *_, patch = fitted("LlamaForCausalLM")
    ids = given[0]["input_ids"][:1, :5]
    plain = merged.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    with applied(merged, patch):
        cached = merged.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        for _ in range(6):
            step = merged(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, step], 1)
    assert torch.equal(cached, ids) and not torch.equal(cached, plain)


def test_a_patch_comes_off_and_another_goes_on():
    merged, (given,), *_, patch = fitted("BertForMaskedLM")
    before = logits(merged, given)
    with applied(merged, patch):
        on = logits(merged, given)
    assert torch.equal(logits(merged, given), before) and not torch.allclose(on, before)
    with applied(merged, patch):
        assert torch.equal(logits(merged, given), on)


def test_a_patch_is_kept_in_a_file_and_knows_its_model(tmp_path):
    merged, (given,), *_, patch = fitted("LlamaForCausalLM", task="french", merged="a" * 64)
    patch.save(tmp_path / "french.safetensors")
    back = Patch.load(tmp_path / "french.safetensors", merged="a" * 64)
    assert dataclasses.replace(back, sites={}) == dataclasses.replace(patch, sites={})
    with applied(merged, patch):
        on = logits(merged, given)
    with applied(merged, back):
        assert torch.equal(logits(merged, given), on)
    with pytest.raises(MergeError, match="not on these"):
        Patch.load(tmp_path / "french.safetensors", merged="b" * 64)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(MergeError, match="no repair that can be read"):
        Patch.load(tmp_path / "broken.safetensors")


def test_a_patch_of_another_model_is_refused():
    *_, patch = fitted("LlamaForCausalLM")
    with pytest.raises(MergeError, match="does not have"), applied(model("BertForMaskedLM"), patch):
        pass


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("foldabel", "Did you mean 'foldable'"),
        (["model.layers.0.mlp.dwn_proj|out"], "Did you mean 'model.layers.0.mlp.down_proj|"),
        (["model.norm|sideways"], "then .out or .in"),
    ],
)
def test_sites_that_do_not_exist_are_named(wanted, said):
    with pytest.raises(MergeError, match=said):
        sites(model("LlamaForCausalLM"), wanted)


def test_data_that_does_not_fit_is_refused():
    whole, given = model("LlamaForCausalLM"), batch("LlamaForCausalLM")
    where = sites(whole)
    goals = statistics(whole, [given], where)
    with pytest.raises(MergeError, match="another model's tokenizer"):
        statistics(whole, [{"input_ids": torch.tensor([[1, 40]])}], where)
    with pytest.raises(MergeError, match="No calibration data"):
        statistics(whole, [], where)
    with pytest.raises(MergeError, match="at least 4 calibration samples, and 3 are"):
        fit(whole, goals, [{key: tensor[:3] for key, tensor in given.items()}], where)
    with pytest.raises(MergeError, match="at most 512"):
        fit(whole, goals, [given] * 65, where)
    with pytest.raises(MergeError, match="no mode of repair 'afine'. Did you mean 'affine'"):
        fit(whole, goals, [given], where, "afine")


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    net = model("ResNetForImageClassification")
    with pytest.raises(MergeError, match="the model takes"):
        statistics(net, [{"pixel_values": torch.zeros(shape)}], sites(net))


def test_activations_that_are_not_finite_are_named_with_their_site():
    broken, given = model("LlamaForCausalLM"), [batch("LlamaForCausalLM")]
    where = sites(broken)
    goals = statistics(broken, given, where)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MergeError, match="layers.1.mlp.up_proj.out' are not finite"):
        statistics(broken, given, where)
    with pytest.raises(MergeError, match="layers.1.mlp.up_proj.out' are not finite"):
        fit(broken, goals, given, where)


def test_an_expert_of_another_width_is_refused():
    merged, given = model("LlamaForCausalLM"), [batch("LlamaForCausalLM")]
    where = sites(merged)
    goals = statistics(merged, given, where)
    narrow = {n: dataclasses.replace(g, mean=g.mean[:-1], squares=g.squares[:-1]) for n, g in goals.items()}
    with pytest.raises(MergeError, match="channels in the merged model"):
        fit(merged, narrow, given, where)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_is_never_a_site(name):
    for preset in ("foldable", "branches", "norms", "official"):
        modules = {site.module for site in sites(families.model(name), preset)}
        assert not [m for m in modules if m.startswith(("lm_head", "classifier", "cls"))]


def test_a_model_that_accelerate_keeps_elsewhere_is_repaired_and_not_folded():
    from accelerate import cpu_offload

    from mergelab.repair import fold

    merged, given, where, goals, patch = fitted("LlamaForCausalLM")
    with applied(merged, patch):
        wanted = logits(merged, given[0])
    away = cpu_offload(average("LlamaForCausalLM"), execution_device="cpu")
    for how in (FREE, dataclasses.replace(FREE, at_once=False)):
        with applied(away, fit(away, goals, given, where, how=how)):
            assert torch.allclose(logits(away, given[0]), wanted, atol=1e-4)
    with pytest.raises(MergeError, match="Fold it where all of it fits"):
        fold(away, patch, given[0])


def test_where_memory_runs_out_smaller_batches_give_the_same_patch(monkeypatch):
    merged, given, where, goals, patch = fitted("LlamaForCausalLM")

    def too_much(*all_at_once):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sys.modules[fit.__module__], "walked", too_much)
    again = fit(merged, goals, given, where, how=FREE)
    assert all(torch.allclose(one.scale, again.sites[n].scale, rtol=1e-4) for n, one in patch.sites.items())


class Perceptron(torch.nn.Module):
    """A module that is nobody's model: three layers, their biases zero."""

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.maps = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(3))
        for map_ in self.maps:
            map_.weight.data = torch.randn(64, 64, generator=draw) / 8
            map_.bias.data.zero_()

    def forward(self, x):
        for map_ in self.maps:
            x = map_(torch.relu(x))
        return x


@pytest.mark.parametrize("count", [2, 4])
def test_the_average_of_strangers_loses_variance_by_the_law_and_deeper_still_and_gets_it_back(count):
    given = [{"x": torch.randn(256, 64, generator=torch.Generator().manual_seed(9))}]
    experts, merged = [Perceptron(seed) for seed in range(count)], Perceptron(0)
    for name, parameter in merged.named_parameters():
        parameter.data = torch.stack([expert.get_parameter(name) for expert in experts]).mean(0).detach()
    where = sites(merged)
    goals = mean_goals([statistics(expert, given, where) for expert in experts])
    patch, report = repair(merged, goals, given, where)
    before = [one.ratio("merged") for one in report.channels]
    assert before[0] == pytest.approx(variance_kept(count, 0), rel=0.25)
    assert before[0] > 1.5 * before[1] > 2 * before[2]
    assert [one.ratio("repaired") for one in report.channels] == pytest.approx([1, 1, 1], abs=1e-3)
    assert len(patch.sites) == 3
