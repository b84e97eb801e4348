"""The preflight: all that is wrong at once, without a weight being read, of folders here and of models on the Hub."""

import json
import struct

import pytest
import torch
from hub import COMMIT, TOKEN, mergelab, surroundings
from making import merged, noise, recipe_of, shifted, tiny, write_adapter, write_model
from test_wrong_input import BASES, EXPERTS

from mergelab import Expert, MergeError, Recipe, plan
from mergelab.__main__ import main
from mergelab.assets import ASSETS
from mergelab.method import METHODS
from mergelab.planning.check import check
from mergelab.planning.estimate import is_spectral


@pytest.fixture
def pair(tmp_path):
    """A base with a configuration, and an expert of it."""
    config = {"hidden_size": 6, "rope_theta": 1e4, "vocab_size": 11}
    base = write_model(tmp_path / "base", tiny(), **config)
    expert = write_model(tmp_path / "expert", shifted(tiny(), 1), **config)
    (expert / "README.md").write_text("---\nbase_model: org/base\n---\n")
    return base, expert


def test_a_recipe_that_can_be_merged_says_what_would_happen(pair, tmp_path, capsys):
    adapter = write_adapter(tmp_path / "lora", {"a.lora_A.weight": noise(2, 8), "a.lora_B.weight": noise(6, 2)})
    (tmp_path / "r.yaml").write_text(recipe_of(*pair, adapter, f"{pair[1]}+{adapter}", method="star").to_yaml())
    assert main(["check", str(tmp_path / "r.yaml"), "--json", str(tmp_path / "check.json")]) == 0
    said = capsys.readouterr().out
    wanted = [
        "merged: 2 tensors, STAR, as matrices",
        "not merged: steps: I64",
        "says it was made from org/base",
    ]
    wanted += ["7 of 7 tensors fit by name and shape", "same configuration", "The recipe can be merged."]
    assert [words for words in wanted if words not in said] == []
    found = json.loads((tmp_path / "check.json").read_text())
    kinds = [model["kind"] for model in found["models"]]
    assert kinds == ["base", "full model", "adapter", "model with an adapter"]
    assert found["merged"] == {"STAR, as matrices": 2, "STAR, entry by entry": 4} and found["problems"] == []


def test_the_bundled_recipe_can_be_merged():
    found = check(Recipe.read(ASSETS / "recipes/numbers-star.yaml"))
    assert found.problems == () and found.notes == () and len(found.models) == 5
    assert "can be merged" in found.summary


def test_every_problem_is_told_at_once_and_the_status_is_1(pair, tmp_path, capsys):
    wide = write_model(tmp_path / "wide", tiny() | {"a.weight": torch.zeros(7, 8), "b.bias": torch.zeros(9)})
    experts = (Expert(str(pair[1]), 1.0, {"density": 9}), Expert(str(wide)), Expert(str(tmp_path / "exprt")))
    recipe = Recipe(str(pair[0]), experts, "ties", {"lamda": 1, "density": 7})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert main(["check", str(tmp_path / "r.yaml")]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    wanted = ["Did you mean 'lambda'?", "'density' of TIES must be a number", "not 9", "'a.weight' is [7, 8]",
              "'b.bias' is [9]", "exprt'. Did you mean"]  # fmt: skip
    assert len(problems) == 6 and all(any(words in line for line in problems) for words in wanted)


def test_without_its_base_the_experts_are_still_looked_for(tmp_path):
    found = check(Recipe("/absent/base", (Expert("/absent/one"), Expert("/absent/two+/absent/lora")), "star"))
    assert len(found.problems) == 4 and "and 3 more" in found.summary


@pytest.mark.parametrize("case", EXPERTS)
def test_what_cannot_be_planned_is_a_problem(trio, tmp_path, case):
    EXPERTS[case][0](tmp_path / "expert")
    recipe = recipe_of(*trio, tmp_path / "expert")
    with pytest.raises(MergeError) as caught:
        plan(recipe)
    assert str(caught.value).partition(" (And ")[0] in check(recipe).problems


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_cannot_be_planned_with_is_a_problem(tmp_path, case):
    BASES[case][0](tmp_path / "base")
    assert check(recipe_of(tmp_path / "base", tmp_path / "base")).problems


def test_an_expert_of_another_making_is_doubted_not_refused(pair, tmp_path):
    other = write_model(tmp_path / "other", shifted(tiny(), 2), hidden_size=6, rope_theta=5e5, vocab_size=12)
    (other / "README.md").write_text("---\nbase_model: [org/elsewhere]\n---\n")
    found = check(recipe_of(*pair, other))
    assert found.problems == ()
    assert "'rope_theta' is 500000.0 in the configuration of expert 'other', and 10000.0 in the base's." in found.notes
    assert f"The card of expert 'other' says it was made from 'org/elsewhere'; the base is '{pair[0]}'." in found.notes
    assert not any("vocab_size" in note or "expert-1" in note for note in found.notes)


def test_a_tokenizer_that_cannot_be_read_is_a_problem_only_where_a_merge_would_read_it(pair, tmp_path):
    tables = [write_model(tmp_path / f"plain-{i}", {"a.weight": noise(6, 8)}) for i in range(2)]
    for folders in (pair, tables):
        for folder, text in zip(folders, ("{}", "{")):
            (folder / "tokenizer.json").write_text(text)
    assert check(recipe_of(*tables)).problems == () and plan(recipe_of(*tables)).names
    with pytest.raises(MergeError, match="Cannot read '.*tokenizer.json'") as caught:
        plan(recipe_of(*pair))
    assert check(recipe_of(*pair)).problems == (str(caught.value),)


def test_the_estimate_has_the_written_size_right(pair, tmp_path):
    takes = check(recipe_of(*pair, dtype="bfloat16")).estimate
    merged(recipe_of(*pair, dtype="bfloat16"), tmp_path / "out")
    file = tmp_path / "out/model.safetensors"
    header = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
    assert takes.written == file.stat().st_size - header
    assert takes.memory > 0 and takes.disk_free > takes.written


def test_a_method_is_spectral_if_decomposing_makes_a_difference():
    assert all(is_spectral(method) in (True, False) for method in METHODS.values())
    assert {name: is_spectral(METHODS[name]) for name in ("star", "drm_h", "linear", "ties")} == {
        "star": True, "drm_h": True, "linear": False, "ties": False,
    }  # fmt: skip


def test_of_the_hub_headers_are_read_and_no_weights(hub, tmp_path):
    root, address, asked, _ = hub
    many = {f"layers.{i}.{'long' * 20}.weight": torch.zeros(1) for i in range(900)}  # a header of more than 100 kB
    write_model(root / "org/base", tiny() | many, shards=2)
    write_model(root / "org/expert", shifted(tiny() | many, 1))
    (tmp_path / "r.yaml").write_text(recipe_of("org/base@main", "org/expert").to_yaml())
    done = mergelab("check", tmp_path / "r.yaml", env=surroundings(address, tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"commit {COMMIT}" in done.stdout and "The recipe can be merged." in done.stdout
    weights = [(path, span) for path, span in asked if path.endswith(".safetensors")]
    assert weights and all(span for _, span in weights)
    assert {path.rpartition("/")[2] for path, _ in weights} == {
        "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip
    assert any(span.startswith("bytes=100000-") for _, span in weights)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_is_wrong_on_the_hub_is_told_at_once(hub, tmp_path):
    root, address, _, dies = hub
    write_model(root / "org/base", tiny())
    write_model(root / "secret/expert", tiny())
    liar = write_model(root / "org/liar", tiny())
    (liar / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    write_model(root / "org/torn", tiny()).joinpath("model.safetensors").rename(root / "org/torn/torn.safetensors")
    dies["torn.safetensors"] = 1000
    sources = ("org/base@v9", "secret/expert", "org/liar", "org/torn", "org/absent")
    (tmp_path / "r.yaml").write_text(recipe_of("org/base", *sources).to_yaml())
    done = mergelab("check", tmp_path / "r.yaml", env=surroundings(address, tmp_path / "cache"))
    assert done.returncode == 1 and done.stderr == ""
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    wanted = ["no revision 'v9'", "or it is private", f"its header claims {2**60} bytes", "could not be reached",
              "'org/absent' here, and the Hub has no such model"]  # fmt: skip
    assert len(problems) == 5 and all(words in line for words, line in zip(wanted, problems))
    env = surroundings(address, tmp_path / "cache", HF_TOKEN=TOKEN)
    (tmp_path / "r.yaml").write_text(recipe_of("org/base", "secret/expert").to_yaml())
    done = mergelab("check", tmp_path / "r.yaml", env=env)
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr


def test_only_methods_that_look_at_singular_directions_are_said_to():
    spectral = {name for name, method in METHODS.items() if is_spectral(method)}
    assert {"star", "drm_h", "tsv_m"} <= spectral and not spectral & {"linear", "ties", "nuslerp", "slerp", "nearswap"}
