"""Merging goes by name and shape: no family of models needs code of its own. transformers judges the result."""

import pytest
import textbook
import torch
import transformers
from making import merged, recipe_of
from safetensors.torch import load_file

TEXT = {"vocab_size": 40}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
FAMILIES = {
    "LlamaForCausalLM": transformers.LlamaConfig(**TEXT, **LAYERS, num_key_value_heads=1),
    "GPT2LMHeadModel": transformers.GPT2Config(**TEXT, n_embd=16, n_layer=2, n_head=2, n_positions=20),
    "BertForMaskedLM": transformers.BertConfig(**TEXT, **LAYERS, max_position_embeddings=20),
    "ViTForImageClassification": transformers.ViTConfig(**LAYERS, image_size=8, patch_size=4),
    "T5ForConditionalGeneration": transformers.T5Config(
        **TEXT, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    ),
}
MATRIX = {
    "LlamaForCausalLM": "model.layers.1.mlp.down_proj.weight",
    "GPT2LMHeadModel": "transformer.h.1.attn.c_attn.weight",
    "BertForMaskedLM": "bert.encoder.layer.1.intermediate.dense.weight",
    "ViTForImageClassification": "vit.encoder.layer.1.output.dense.weight",
    "T5ForConditionalGeneration": "decoder.block.1.layer.2.DenseReluDense.wi.weight",
}
TABLES = {
    "LlamaForCausalLM": {"model.embed_tokens.weight", "lm_head.weight"},
    "GPT2LMHeadModel": {"transformer.wte.weight", "transformer.wpe.weight"},
    "BertForMaskedLM": {f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")},
    "ViTForImageClassification": set(),
    "T5ForConditionalGeneration": {
        "shared.weight",
        *(f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for half in ("encoder", "decoder")),
    },
}


@pytest.fixture(scope="module")
def folders(family):
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    return {name: family(getattr(transformers, name)(config)) for name, config in FAMILIES.items()}


def loaded(name, folder):
    """The model, as transformers loads it without knowing of us; nothing is missing and nothing left over."""
    kind = getattr(transformers, name)
    model, about = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    return model


@pytest.mark.parametrize("method", ["star", "drm_h", "drm_v"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_merges_and_loads_and_equals_the_formula(folders, tmp_path, name, method):
    report = merged(recipe_of(*folders[name], method=method), tmp_path / "out")
    loaded(name, tmp_path / "out").save_pretrained(tmp_path / "again")  # what transformers holds, by its names on disk
    merge = load_file(tmp_path / "again/model.safetensors")
    start, *experts = (load_file(folder / "model.safetensors") for folder in folders[name])
    for tensor in (MATRIX[name], *TABLES[name]):
        deltas = [expert[tensor].double() - start[tensor].double() for expert in experts]
        wanted = start[tensor].double() + formula(method, deltas, tensor in TABLES[name])
        assert torch.allclose(merge[tensor].double(), wanted, atol=1e-5), tensor

    decomposed = {layer.name for layer in report.decomposed}
    matrices = {layer.name for layer in report.layers if len(layer.shape) == 2}
    assert matrices - decomposed == TABLES[name]


def formula(method, deltas, table):
    if table:
        return sum(deltas) / 2 if method == "star" else textbook.vote(deltas, [1.0, 1.0])
    return textbook.star(deltas, [1.0, 1.0], 40) if method == "star" else getattr(textbook, method)(deltas, [1.0, 1.0])


def test_a_merged_model_runs_and_keeps_its_ties(folders, tmp_path):
    merged(recipe_of(*folders["GPT2LMHeadModel"], method="star", dtype="bfloat16"), tmp_path / "out")
    model = loaded("GPT2LMHeadModel", tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_a_sharded_model_merges_and_loads(folders, tmp_path):
    model = loaded("LlamaForCausalLM", folders["LlamaForCausalLM"][0])
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert (tmp_path / "base/model.safetensors.index.json").is_file()
    recipe = recipe_of(tmp_path / "base", *folders["LlamaForCausalLM"][1:], method="star")
    merged(recipe, tmp_path / "out")
    merged(recipe_of(*folders["LlamaForCausalLM"], method="star"), tmp_path / "whole")
    one, other = loaded("LlamaForCausalLM", tmp_path / "out"), loaded("LlamaForCausalLM", tmp_path / "whole")
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_a_safetensors_file_that_we_write_is_laid_out_as_the_library_lays_it_out(folders, tmp_path):
    base = folders["BertForMaskedLM"][0]
    merged(recipe_of(base, base), tmp_path / "out")
    files = [folder / "model.safetensors" for folder in (base, tmp_path / "out")]
    assert files[0].stat().st_size == pytest.approx(files[1].stat().st_size, abs=64)
