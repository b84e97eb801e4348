"""A model as a LoRA adapter: exact where the rank suffices, the best there is where not; what is left out is told."""

import json
import re

import pytest
import torch
import transformers
from making import finished, merged, noise, put_in_place, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import load_file, save_file

from mergelab import MergeError, plan
from mergelab.__main__ import main
from mergelab.files.checkpoint import Checkpoint
from mergelab.merging.export import export_lora


@pytest.fixture
def thin(tmp_path):
    """A base, and a full model that differs from it by matrices of rank 2."""
    base = write_model(tmp_path / "base", tiny())
    pair = {f"{m}.lora_A.weight": noise(2, i, seed=i) for m, i in (("a", 8), ("b", 6))}
    pair |= {f"{m}.lora_B.weight": noise(o, 2, seed=3 * o) for m, o in (("a", 6), ("b", 8))}
    merged(recipe_of(base, write_adapter(tmp_path / "lora", pair)), tmp_path / "full")
    return base, tmp_path / "full"


def test_an_export_of_enough_rank_gives_the_model_back(thin, tmp_path):
    base, full = thin
    report = finished(export_lora(str(full), str(base), tmp_path / "out", 4))
    assert report.errors.keys() == {"a.weight", "b.weight"} and report.worst < 1e-5
    assert set(report.ranks.values()) <= {2, 3, 4}  # rounding of the stored weights may add directions
    layer = plan(recipe_of(base, tmp_path / "out")).layer("a.weight", "cpu")
    assert torch.allclose(layer.base + layer.dense[0], Checkpoint(full, "full")["a.weight"], atol=1e-6)


def test_the_error_is_that_of_the_best_approximation(tmp_path):
    base = write_model(tmp_path / "base", tiny())
    full = write_model(tmp_path / "full", shifted(tiny(), 1))
    report = finished(export_lora(str(full), str(base), tmp_path / "out", 3))
    for name in ("a.weight", "b.weight"):
        delta = Checkpoint(full, "full")[name].double() - tiny()[name].double()
        values = torch.linalg.svdvals(delta)
        best = (values[3:].square().sum() / values.square().sum()).sqrt()
        assert report.errors[name] == pytest.approx(float(best), rel=1e-4)
    assert report.left_out.keys() == {"embed.weight", "b.bias", "conv.weight", "scale"}
    assert "table of embeddings" in report.left_out["embed.weight"]
    assert json.loads((tmp_path / "out/report.json").read_text())["errors"] == report.errors


def test_matrices_of_a_conv1d_are_exported_the_other_way_round_and_those_of_linear_layers_as_they_lie(tmp_path):
    shapes = {"h.0.attn.c_attn": (6, 18), "h.0.attn.c_proj": (6, 6), "h.0.mlp.c_fc": (6, 24), "score": (3, 6)}
    shapes |= {"lm_head": (11, 6)}
    start = {f"{name}.weight": noise(*shape, seed=i).float() for i, (name, shape) in enumerate(shapes.items())}
    base = write_model(tmp_path / "base", start, model_type="gpt2", tie_word_embeddings=False)
    full = write_model(tmp_path / "full", shifted(start, 1), model_type="gpt2", tie_word_embeddings=False)
    finished(export_lora(str(full), str(base), tmp_path / "out", 8))
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["fan_in_fan_out"] is True
    pairs = load_file(tmp_path / "out/adapter_model.safetensors")
    for name, shape in shapes.items():
        a, b = (pairs[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert (b.shape[0], a.shape[1]) == (shape[::-1] if "c_" in name else shape)
        layer = plan(recipe_of(base, tmp_path / "out")).layer(f"{name}.weight", "cpu")
        assert torch.allclose(layer.base + layer.dense[0], Checkpoint(full, "full")[f"{name}.weight"], atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "more", "task"),
    [
        ("LlamaForCausalLM", {}, "CAUSAL_LM"),
        ("GPT2LMHeadModel", {}, "CAUSAL_LM"),
        ("BertForSequenceClassification", {}, "SEQ_CLS"),
        ("BertForTokenClassification", {}, "TOKEN_CLS"),
        ("BertForQuestionAnswering", {}, "QUESTION_ANS"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "SEQ_2_SEQ_LM"),
        ("LlavaForConditionalGeneration", {}, None),
        ("BertModel", {"vocab_size": 9}, "FEATURE_EXTRACTION"),
        ("ViTModel", {}, None),
        ("ViTForImageClassification", {}, None),
        (None, {}, None),
    ],
)
def test_the_task_of_an_adapter_is_that_of_its_bases_class_or_not_said(tmp_path, architecture, more, task):
    more = more | ({"architectures": [architecture]} if architecture else {})
    base, full = (write_model(tmp_path / f"{i}", shifted(tiny(), i), **more) for i in (1, 2))
    finished(export_lora(str(full), str(base), tmp_path / "out", 2))
    assert json.loads((tmp_path / "out/adapter_config.json").read_text()).get("task_type") == task


def test_what_only_the_model_has_is_listed_with_the_reason_and_what_was_noticed_is_said(tmp_path, capsys):
    start = {"model.embed_tokens.weight": noise(9, 6).float(), "model.a.weight": noise(6, 8).float()}
    head = {"lm_head.weight": noise(9, 6, seed=1).float(), "steps": torch.arange(3)}
    full = {f"net.{name}": tensor for name, tensor in shifted(start, 1).items()}
    full |= {"lm_head.weight": noise(9, 6, seed=2).float(), "score.weight": noise(2, 6).float(), "steps": torch.ones(3)}
    write_model(tmp_path / "base", start | head, tie_word_embeddings=True)
    write_model(tmp_path / "full", full, tie_word_embeddings=False)
    words = ["export", str(tmp_path / "full"), str(tmp_path / "out"), "--base", str(tmp_path / "base"), "--rank", "6"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "not exported: score.weight: the base has no such tensor" in said
    assert "not exported: lm_head.weight: the base ties its head to its embeddings" in said
    assert "not exported: steps: I64, no floating-point weights" in said
    assert "note: Expert 'full' names its tensors otherwise" in said
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["left_out"].keys() == {"score.weight", "lm_head.weight", "steps", "model.embed_tokens.weight"}
    assert len(report["notes"]) == 2 and "`score.weight`" in (tmp_path / "out/README.md").read_text()


def test_a_head_that_the_model_stores_beside_the_embeddings_that_it_is_loses_nothing(tmp_path):
    start = {"embed_tokens.weight": noise(9, 6).float(), "a.weight": noise(6, 8).float()}
    full = start | {"a.weight": start["a.weight"] + 1, "lm_head.weight": start["embed_tokens.weight"].clone()}
    base, model = (write_model(tmp_path / n, t, tie_word_embeddings=True) for n, t in (("base", start), ("full", full)))
    assert finished(export_lora(str(model), str(base), tmp_path / "out", 2)).left_out == {}


def test_on_the_command_line_after_a_merge_and_of_any_model(thin, tmp_path, capsys):
    base, full = thin
    (tmp_path / "r.yaml").write_text(recipe_of(base, full).to_yaml())
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--lora", "2"]) == 0
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "again"), "--rank", "2"]) == 0
    assert capsys.readouterr().out.count("2 matrices at rank 2") == 2
    one, other = (tmp_path / name / "adapter_model.safetensors" for name in ("out-lora", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_merge_with_nothing_to_export_says_that_it_was_written_all_the_same(thin, tmp_path, capsys):
    base, _ = thin
    (tmp_path / "r.yaml").write_text(recipe_of(base, base).to_yaml())
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--lora", "2"]) == 1
    said = capsys.readouterr().err
    assert f"'{tmp_path}/out' holds the merge, but no adapter of it was written: No matrix of" in said
    assert (tmp_path / "out/model.safetensors").is_file() and not (tmp_path / "out-lora").exists()


def test_a_rank_that_no_matrix_has_is_cut_and_the_command_says_so(thin, tmp_path, capsys):
    base, full = thin
    words = ["export", str(full), str(tmp_path / "out"), "--rank", "100000", "--base", str(base)]
    assert main(words) == 0
    said = capsys.readouterr().out
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == 2 and config["rank_pattern"] == {}
    assert "note: no matrix has rank 100000; 2, the highest of any" in said and "2 matrices at rank 2" in said


def test_what_an_export_lacks_is_one_line_and_is_said_before_anything_is_merged(thin, tmp_path, capsys):
    base, full = thin
    (tmp_path / "full/recipe.yaml").unlink()
    (tmp_path / "r.yaml").write_text(recipe_of(base, full).to_yaml())
    (tmp_path / "taken-lora").mkdir()
    (tmp_path / "taken-lora/file").touch()
    out = tmp_path / "out"
    for words, said in {
        ("export", full, out, "--rank", 4): "has no recipe.yaml that names its base. .* --base MODEL",
        ("export", tmp_path / "absent", out, "--rank", 4): "There is no folder",
        ("export", tmp_path / "lora", out, "--rank", 4, "--base", base): "is an adapter already",
        ("merge", tmp_path / "r.yaml", out, "--lora", 0): "rank of an adapter must be a whole number",
        ("merge", tmp_path / "r.yaml", tmp_path / "taken", "--lora", 2): "taken-lora' exists already",
    }.items():
        assert main([str(word) for word in words]) == 1
        line = capsys.readouterr().err
        assert re.search(said, line) and line.count("\n") == 1, line
    assert not out.exists() and not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    "model, base, rank, message",
    [
        ("base", "base", 4, "No matrix of .* differs"),
        ("full", "base", 0, "rank of an adapter must be a whole number"),
        ("base", "wide", 4, "Only models of one shape"),
        ("base", "lora", 4, "is an adapter, not a model"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(thin, tmp_path, model, base, rank, message):
    write_model(tmp_path / "wide", tiny() | {"a.weight": torch.zeros(6, 9)})
    with pytest.raises(MergeError, match=message):
        finished(export_lora(str(tmp_path / model), str(tmp_path / base), tmp_path / "out", rank))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("who", ["base", "full"])
def test_a_model_or_a_base_that_is_not_finite_is_refused_by_name(thin, tmp_path, value, who):
    for name in ("a.weight", "b.bias"):
        write_model(tmp_path / f"{who}-{name}", broken := tiny())
        broken[name].view(-1)[-1] = value
        save_file(broken, tmp_path / f"{who}-{name}/model.safetensors")
        names = {"base": str(thin[0]), "full": str(thin[1])} | {who: str(tmp_path / f"{who}-{name}")}
        whose = "the base" if who == "base" else "the model"
        with pytest.raises(MergeError, match=f"'{name}' of {whose} '.*' holds NaN or an infinity"):
            finished(export_lora(names["full"], names["base"], tmp_path / "out", 2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("who", ["base", "full"])
def test_a_model_that_is_replaced_while_it_is_exported_gives_no_adapter(thin, tmp_path, who):
    job, file = export_lora(str(thin[1]), str(thin[0]), tmp_path / "out", 2), tmp_path / who / "model.safetensors"
    next(job)
    put_in_place(file, file.read_bytes())
    with pytest.raises(MergeError, match=f"'{file}' was changed after it was opened"):
        finished(job)
    assert not (tmp_path / "out").exists()


def test_a_change_beyond_the_numbers_of_an_adapter_is_refused_or_left_out(tmp_path):
    start = {"a.weight": noise(6, 8), "b.weight": torch.zeros(8, 6, dtype=torch.float64)}
    base = write_model(tmp_path / "base", start)
    for i, large in enumerate((1e60, 1e300, 3e38)):
        full = write_model(tmp_path / f"large-{i}", start | {"a.weight": start["a.weight"] + large})
        with pytest.raises(MergeError, match="The change of 'a.weight' does not fit into F32"):
            finished(export_lora(str(full), str(base), tmp_path / "out", 2))
    small = write_model(tmp_path / "small", {"a.weight": start["a.weight"] + 1, "b.weight": start["b.weight"] + 1e-200})
    report = finished(export_lora(str(small), str(base), tmp_path / "out", 2))
    assert report.errors.keys() == {"a.weight"} and "too small for F32" in report.left_out["b.weight"]


def test_an_adapter_goes_by_the_names_that_the_model_has_in_memory_and_comes_back_to_those_on_disk(tmp_path):
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    own = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    own.pop("lm_head.weight")
    about = config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}
    base = write_model(tmp_path / "base", own, **about)
    name = "h.0.attn.c_attn.weight"
    full = write_model(tmp_path / "full", own | {name: own[name] + 0.1}, **about)
    finished(export_lora(str(full), str(base), tmp_path / "out", 2))
    held = load_file(tmp_path / "out/adapter_model.safetensors")
    keys = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in held}
    assert keys == {"transformer.h.0.attn.c_attn"} and keys <= {name for name, _ in model.named_modules()}
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["target_modules"] == sorted(keys)
    back = plan(recipe_of(base, tmp_path / "out")).layer(name, "cpu").dense[0]
    assert torch.allclose(back, torch.full_like(back, 0.1), atol=1e-5)
