"""A folded model is an ordinary one that computes what the hooked one computes."""

import copy
import dataclasses

import pytest
import torch
import transformers
from families import CONFIGS, average, batch, logits, model

from mergelab.errors import MergeError
from mergelab.model import with_biases
from mergelab.repair import How, applied, fit, fold, sites, statistics

FULLY = {  # family -> the mode in which everything can be folded
    "LlamaForCausalLM": "affine",
    "MistralForCausalLM": "affine",
    "Qwen2ForCausalLM": "affine",
    "Qwen3ForCausalLM": "rms",
    "GemmaForCausalLM": "rms",
    "GPT2LMHeadModel": "affine",
    "T5ForConditionalGeneration": "rms",
    "BertForMaskedLM": "affine",
    "ViTForImageClassification": "affine",
    "ResNetForImageClassification": "affine",
}


def fitted(name, mode="affine", preset="foldable"):
    merged, given = average(name), batch(name)
    where = sites(merged, preset)
    return merged, given, fit(merged, statistics(model(name, 1), [given], where), [given], where, mode)


def hooked(merged, patch, given):
    with applied(merged, patch):
        return logits(merged, given)


@pytest.mark.parametrize("name", CONFIGS)
def test_folded_is_hooked_and_survives_a_visit_to_the_disk(name, tmp_path):
    merged, given, patch = fitted(name, FULLY[name])
    upgraded = with_biases(merged) if FULLY[name] == "affine" else merged
    done = fold(upgraded, patch, given)
    wanted = hooked(merged, patch, given)
    assert done.unfolded == () and done.difference <= 2e-5 * done.scale
    assert not torch.allclose(logits(merged, given), wanted, atol=1e-2)
    done.model.save_pretrained(tmp_path)
    architecture = getattr(transformers, done.model.config.architectures[0])
    back, about = architecture.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    assert torch.allclose(logits(back.eval(), given), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"])
def test_biases_of_zero_change_nothing_and_the_models_become_llamas(name):
    plain, given = model(name), batch(name)
    made = with_biases(plain)
    assert type(made) is transformers.LlamaForCausalLM
    assert torch.equal(logits(made, given), logits(plain, given))
    assert all(m.bias is not None for n, m in made.named_modules() if n.endswith("_proj"))


def test_a_sliding_window_keeps_its_architecture():
    config = copy.deepcopy(CONFIGS["MistralForCausalLM"])
    config.sliding_window = 4
    sliding = transformers.MistralForCausalLM(config)
    assert type(with_biases(sliding)) is transformers.MistralForCausalLM


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration", "GemmaForCausalLM"])
def test_what_has_no_place_is_listed_and_can_be_worn_on_top(name):
    merged, given, patch = fitted(name)
    done = fold(merged, patch, given)
    assert done.unfolded and set(done.unfolded) <= set(patch.sites)
    with applied(done.model, done.left):
        assert torch.allclose(logits(done.model, given), hooked(merged, patch, given), atol=1e-4)


@pytest.mark.parametrize("name", ["Qwen3ForCausalLM", "GemmaForCausalLM"])
def test_biases_in_attention_alone_fold_what_they_can(name):
    merged, given, patch = fitted(name)
    done = fold(with_biases(merged), patch, given)
    assert done.unfolded and all("mlp" in n or "post_attention_layernorm" in n for n in done.unfolded)
    with applied(done.model, done.left):
        assert torch.allclose(logits(done.model, given), hooked(merged, patch, given), atol=1e-4)


@pytest.mark.parametrize("mode", ["affine", "shift"])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "ViTForImageClassification"])
def test_a_whole_layer_takes_a_shift_but_no_scale(name, mode):
    merged, given, patch = fitted(name, mode, "official")
    layers = {n for n, one in patch.sites.items() if one.site.kind == "block" and ".1" in n}
    done = fold(with_biases(merged), patch, given)
    assert layers and (layers <= set(done.unfolded)) == (mode == "affine")


def test_the_order_of_folding_matters():
    norm, reader = "model.layers.1.input_layernorm|out", "model.layers.1.self_attn.v_proj|in"
    merged, given, patch = fitted("LlamaForCausalLM", preset=[norm, reader])
    strong = dataclasses.replace(patch.sites[reader], scale=3 + patch.sites[reader].scale)
    patch = dataclasses.replace(patch, sites={norm: patch.sites[norm], reader: strong})
    assert fold(with_biases(merged), patch, given).unfolded == ()
    backwards = dataclasses.replace(patch, sites=dict(reversed(patch.sites.items())))
    with pytest.raises(MergeError, match="cannot be folded exactly"):
        fold(with_biases(merged), backwards, given)


def test_the_model_that_is_folded_stays_as_it_was():
    merged, given, patch = fitted("BertForMaskedLM")
    before = copy.deepcopy(merged.state_dict())
    fold(merged, patch, given)
    assert all(torch.equal(before[key], tensor) for key, tensor in merged.state_dict().items())


def test_a_tied_head_keeps_its_table():
    merged, given = average("GPT2LMHeadModel"), batch("GPT2LMHeadModel")
    where = sites(merged, ["transformer.wte|out"])
    goals = statistics(model("GPT2LMHeadModel", 1), [given], where)
    assert fold(merged, fit(merged, goals, [given], where), given).unfolded == ("transformer.wte|out",)


def test_an_untied_embedding_is_folded():
    merged, given = average("GemmaForCausalLM"), batch("GemmaForCausalLM")
    merged.lm_head.weight = torch.nn.Parameter(merged.lm_head.weight.detach().clone())
    where = sites(merged, ["model.embed_tokens|out"])
    goals = statistics(model("GemmaForCausalLM", 1), [given], where)
    assert fold(merged, fit(merged, goals, [given], where, how=How()), given).unfolded == ()
