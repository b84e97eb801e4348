"""`align` on the command line and in a recipe: the same function, in other coordinates, whole or not at all."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import transformers
from kin import kin
from making import finished, merged, put_in_place, recipe_of, shifted, write_adapter
from safetensors.torch import load_file, save_file

from mergelab import MergeError, Recipe, Report, inspect, plan
from mergelab.__main__ import main
from mergelab.align.opened import check_kin
from mergelab.align.pair import shapes_of
from mergelab.files.checkpoint import Checkpoint
from mergelab.merging.realign import realigned
from mergelab.model import built, outputs, probe
from mergelab.symmetry import symmetry_of


def written(folder, config, tensors, **more):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def moved(config, tensors, seed=5, rotations=True):
    symmetry = symmetry_of(shapes_of(tensors), config)
    elements = symmetry.random(seed, rotations)
    return {name: symmetry.moved(name, tensor, elements) for name, tensor in tensors.items()}


@pytest.fixture
def strangers(tmp_path):
    """A base, an expert fine-tuned from it, and that expert after a random element of the symmetry."""
    config, base = kin("llama")
    expert = shifted(base, seed=1, size=0.02)
    return tuple(
        written(tmp_path / name, config, tensors)
        for name, tensors in (("base", base), ("tuned", expert), ("stranger", moved(config, expert)))
    )


@pytest.mark.parametrize("who", [0, 2])
def test_a_model_that_is_replaced_while_it_is_aligned_is_not_written(strangers, tmp_path, who):
    file = strangers[who] / "model.safetensors"
    job = realigned(str(strangers[2]), str(strangers[0]), tmp_path / "out")
    next(job)
    put_in_place(file, file.read_bytes())
    with pytest.raises(MergeError, match=f"'{file}' was changed after it was opened"):
        finished(job)
    assert not (tmp_path / "out").exists()


def test_align_writes_the_same_function_in_the_references_coordinates(strangers, tmp_path, capsys):
    base, tuned, stranger = strangers
    (stranger / "tokenizer_config.json").write_text("{}")
    assert main(["align", str(stranger), "--to", str(base), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (
        f"{tmp_path}/out: the same function, max |Δ outputs|" in said
        and "matched by weights: mean correlation 0.9" in said
    )
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", tuned))
    assert all(torch.allclose(found[name], wanted[name], atol=2e-2) for name in wanted)
    config = json.loads((stranger / "config.json").read_text())
    batch = probe(config)
    before = outputs(built(config, load_file(stranger / "model.safetensors")), batch)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(outputs(model, batch), before, atol=1e-4)
    facts = json.loads((tmp_path / "out/alignment.json").read_text())
    assert facts["difference"] < 1e-4 and facts["self-test"] < 1e-5
    assert facts["distance after"] < 0.1 < facts["distance before"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "alignment.json", "config.json", "model.safetensors", "tokenizer_config.json",
    }  # fmt: skip


def test_align_keeps_shards_and_every_bit_if_it_only_permutes(strangers, tmp_path):
    base, _, _ = strangers
    config, tensors = kin("llama")
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    model = built(config, moved(config, half, rotations=False)).bfloat16()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    arguments = [
        "align",
        str(tmp_path / "sharded"),
        "--to",
        str(base),
        "--out",
        str(tmp_path / "out"),
        "--permute-only",
    ]
    assert main(arguments) == 0
    files = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors*"))
    assert len(files) > 2 and sorted(path.name for path in (tmp_path / "out").glob("*.safetensors*")) == files
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert all(torch.equal(found[name], half[name]) for name in half)


def test_a_recipe_that_aligns_merges_a_stranger_as_if_it_were_fine_tuned(strangers, tmp_path):
    base, tuned, stranger = strangers
    plain = merged(recipe_of(base, tuned), tmp_path / "plain")
    report = merged(recipe_of(base, stranger, align="weights"), tmp_path / "aligned")
    naive = merged(recipe_of(base, stranger), tmp_path / "naive")
    one, other, bad = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "aligned", "naive"))
    assert all(torch.allclose(one[name], other[name], atol=2e-2) for name in one)
    assert any((one[name] - bad[name]).abs().max() > 0.5 for name in one)
    facts = report.alignment["stranger"]
    assert facts["distance after"] < 0.1 and not plain.alignment and not naive.alignment
    assert Report.from_json(report.to_json()) == Report.from_json((tmp_path / "aligned/report.json").read_text())
    assert Report.from_json(report.to_json()).alignment["stranger"]["objective"] == facts["objective"]
    assert "align: weights" in (tmp_path / "aligned/recipe.yaml").read_text()


def test_an_adapter_is_added_before_its_model_is_aligned(strangers, tmp_path):
    base, tuned, stranger = strangers
    config, tensors = kin("llama")
    up, down = torch.randn(24, 2) * 0.1, torch.randn(2, 16) * 0.1
    name = "model.layers.0.mlp.up_proj"
    theirs = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    adapter = write_adapter(tmp_path / "adapter", theirs)
    view = plan(recipe_of(base, f"{stranger}+{adapter}", align="weights")).experts[0]
    start = load_file(base / "model.safetensors")[f"{name}.weight"]
    own = load_file(stranger / "model.safetensors")[f"{name}.weight"] + 2 * up @ down  # alpha / r is 2
    wanted = view.checkpoint.alignment.applied(f"{name}.weight", own) - start
    whole = view.checkpoint["lm_head.weight"]
    assert torch.equal(view.checkpoint.read("lm_head.weight", slice(3, 5)), whole[3:5])
    assert torch.allclose(view.delta(f"{name}.weight", start, start), wanted, atol=1e-5)
    part = slice(2, 9)
    assert torch.allclose(view.delta(f"{name}.weight", start[part], start[part], part), wanted[part], atol=1e-5)
    alone = plan(recipe_of(base, adapter, base, align="weights"))
    assert not alone.alignment  # both are in the base's coordinates


def test_a_recipe_says_how_it_aligns_both_ways():
    recipe = replace(Recipe("base", (), "star"), align="activations")
    assert recipe.to_dict()["mergelab"] == {"align": "activations"}
    data = {"merge_method": "star", "base_model": "base", "models": ["a"], "mergelab": {"align": "weights"}}
    assert (
        Recipe.from_dict(data).align == "weights" and Recipe.from_dict(data).to_dict()["mergelab"] == data["mergelab"]
    )
    for wrong in ("weight", 3, True):
        with pytest.raises(MergeError, match="align"):
            Recipe.from_dict({**data, "mergelab": {"align": wrong}})


def test_the_best_alignment_is_found_by_a_recipe_and_written_in_the_report(tmp_path):
    recipe = recipe_of("digits/scratch-upright", "digits/scratch-invert", align="best")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    facts = plan(recipe).alignment["scratch-invert"]
    assert facts["how"] == "activations" and facts["self-test"] < 1e-3
    tuned = plan(recipe_of("digits/base", "digits/upright", align="best")).alignment["upright"]
    assert tuned["distance after"] <= tuned["distance before"]


def test_bundled_experts_bring_their_calibration_data(tmp_path):
    recipe = recipe_of("numbers/base", "numbers/french", "numbers/german-lora", align="activations")
    report = finished(inspect(plan(recipe)))
    assert list(report.alignment) == ["french"]  # an adapter of the base is in its coordinates
    assert report.alignment["french"]["distance after"] <= report.alignment["french"]["distance before"]


def refused(capsys, *arguments):
    """The one line that a failing command says."""
    assert main([str(argument) for argument in arguments]) == 1
    line = capsys.readouterr().err
    assert line.startswith("mergelab: ") and line.count("\n") == 1, line
    return line


def test_what_cannot_be_aligned_is_one_line_and_leaves_nothing(strangers, tmp_path, capsys):
    base, _, stranger = strangers
    config, tensors = kin("llama")
    out = tmp_path / "out"
    gpt2 = written(tmp_path / "gpt2", *kin("gpt2"))
    mamba = written(tmp_path / "mamba", config, tensors, model_type="mamba")
    large = {**tensors, "lm_head.weight": torch.zeros(40, 16), "model.embed_tokens.weight": torch.zeros(40, 16)}
    wide = written(tmp_path / "wide", config, large, vocab_size=40)
    narrow = written(tmp_path / "narrow", config, {**tensors, "model.norm.weight": torch.ones(8)})
    lacking = written(tmp_path / "lacking", config, {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    broken = written(tmp_path / "broken", config, {**tensors, "model.norm.weight": torch.full((16,), torch.nan)})
    adapter = write_adapter(tmp_path / "adapter", {"x.lora_A.weight": torch.zeros(2, 2)})

    def said(expert, *more, to=base):
        return refused(capsys, "align", expert, "--to", to, "--out", out, *more)

    assert "is a 'gpt2', and" in said(gpt2) and "a 'llama': neurons of different architectures" in said(gpt2)
    assert "symmetries of 'mamba' are not known" in said(mamba, to=mamba)
    assert "their vocabularies differ" in said(wide)
    assert "'model.norm.weight' is [8] in the expert and [16] in the reference" in said(narrow)
    assert "no tensor 'model.norm.weight'" in said(lacking)
    assert "holds NaN or an infinity" in said(broken)
    assert f"'model.norm.weight' of '{broken}' holds NaN or an infinity" in said(stranger, to=broken)
    assert "is an adapter" in said(adapter)
    assert "need calibration data, and" in said(stranger, "--how", "activations")
    assert "Cannot read the calibration data" in said(stranger, "--how", "activations", "--data", tmp_path / "absent")
    assert "There is no folder" in said(tmp_path / "absent")
    assert "exists already" in refused(capsys, "align", stranger, "--to", base, "--out", base)
    for folder, number in ((base, 1), (stranger, 2)):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": number}}}))
    assert "The token 'b' is number 2 in" in said(stranger)
    assert not out.exists() and not [path for path in tmp_path.iterdir() if "partial" in path.name]


UNIGRAM = [["a", -1], ["b", -2]]


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ({"vocab": UNIGRAM}, {"vocab": [["a", -1], ["c", -2]]}, "The token 'b' is number 1 in"),
        ({"vocab": UNIGRAM}, {"vocab": {"b": 0, "a": 1}}, "The token 'a' is number 0 in"),
        ({"vocab": UNIGRAM}, {"vocab": [["a", -1], ["b", -3]]}, None),
        (None, {"vocab": UNIGRAM}, None),
    ],
)
def test_vocabularies_of_every_kind_are_compared_where_both_say_what_they_are(strangers, mine, theirs, said):
    base, _, stranger = strangers
    for folder, model in ((stranger, mine), (base, theirs)):
        (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(MergeError, match=said) if said else nullcontext():
        check_kin(*(Checkpoint(folder, folder.name) for folder in (stranger, base)))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_attention_heads", 2.5, "'num_attention_heads' must be a whole number, at least 1, not 2.5"),
        ("num_key_value_heads", "two", "'num_key_value_heads' must be a whole number"),
        ("vocab_size", "32", "'vocab_size' must be a whole number"),
        ("rope_parameters", "linear", "'rope_parameters' must be a mapping"),
        ("partial_rotary_factor", 7, "'partial_rotary_factor' must be a number from 0 to 1, not 7"),
        ("text_config", "x", "'text_config' must be a mapping"),
        ("image_size", [8, "x"], "'image_size' must be one whole number or two"),
        ("model_type", ["llama"], "Did you mean 'llama'"),
        ("architectures", 5, "'architectures' must be a list of names, not 5"),
        ("head_dim", "8", "make no LlamaForCausalLM: .*'head_dim'"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_error_with_its_key(tmp_path, key, value, said):
    config, tensors = kin("llama")
    config = {**config, "rope_parameters": None, key: value}
    folders = [written(tmp_path / name, config, tensors) for name in ("base", "expert")]
    with pytest.raises(MergeError, match=said):
        _ = plan(recipe_of(*folders, align="weights")).alignment


def test_a_recipe_refuses_what_it_cannot_align_before_it_begins(strangers, tmp_path):
    base, _, stranger = strangers
    with pytest.raises(MergeError, match="'align: activations' and 'align: best' need calibration data"):
        plan(recipe_of(base, stranger, align="activations"))
    config, tensors = kin("llama")
    known = [written(tmp_path / f"mamba {i}", config, tensors, model_type="mamba") for i in (1, 2)]
    with pytest.raises(MergeError, match="symmetries of 'mamba' are not known"):
        plan(recipe_of(*known, align="weights"))


def test_prompts_from_a_file_show_both_models_at_work(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("12\n345\n\n7\n")
    arguments = [
        "align",
        "numbers/french",
        "--to",
        "numbers/base",
        "--out",
        str(tmp_path / "out"),
        "--how",
        "activations",
    ]
    assert main([*arguments, "--data", str(tmp_path / "prompts.txt")]) == 0
    assert json.loads((tmp_path / "out/alignment.json").read_text())["how"] == "activations"
    (tmp_path / "prompts.txt").write_text("\n\n")
    assert "no text in it" in refused(
        capsys, *arguments[:-3], tmp_path / "two", *arguments[-2:], "--data", tmp_path / "prompts.txt"
    )


def test_bundled_digits_bring_pictures_to_be_aligned_on():
    recipe = recipe_of("digits/scratch-upright", "digits/scratch-invert", "digits/scratch-upright", align="activations")
    facts = plan(recipe).alignment["scratch-invert"]
    assert facts["how"] == "activations" and facts["distance after"] < facts["distance before"]
