"""Experts that do not quite fit the base: vocabularies, heads, names; refused by default, and what a recipe may say."""

import json

import pytest
import torch
from making import merged, noise, recipe_of, shifted, tiny, write_model

from mergelab import MergeError, plan
from mergelab.files.checkpoint import Checkpoint
from mergelab.files.vocabulary import differing_rows, tokens_of

WORDS = [f"w{i}" for i in range(400)]


def model(seed=0, rows=11, head=True, prefix=""):
    """A small language model with so many rows in its tables."""
    base = tiny()
    tensors = {"model.embed_tokens.weight": noise(rows, 6, seed=30), "model.a.weight": base["a.weight"]}
    tensors |= {"lm_head.weight": noise(rows, 6, seed=31)} if head else {}
    moved = shifted({n: t.float() for n, t in tensors.items()}, seed) if seed else tensors
    return {prefix + name: tensor.float() for name, tensor in moved.items()}


def write_tokens(folder, words, added=()):
    tokens = {"model": {"vocab": {word: i for i, word in enumerate(words)}}}
    tokens["added_tokens"] = [{"id": len(words) + i, "content": token} for i, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture
def base(tmp_path):
    return write_model(tmp_path / "base", model(), tie_word_embeddings=False)


@pytest.mark.parametrize("rows", [9, 15])
def test_another_vocabulary_is_refused_and_the_message_names_the_ways_out(base, tmp_path, rows):
    expert = write_model(tmp_path / "expert", model(1, rows))
    with pytest.raises(
        MergeError, match=r"\[\d+, 6\] in expert 'expert', but \[11, 6\].*'vocabulary: base'.*'vocabulary: common'"
    ) as caught:
        plan(recipe_of(base, expert))
    assert "(And 1 more such: `mergelab check` lists them all.)" in str(caught.value)


@pytest.mark.parametrize("rows", [9, 15])
@pytest.mark.parametrize("policy", ["base", "common"])
def test_a_vocabulary_policy_merges_the_rows_it_says_and_leaves_the_others_the_bases(base, tmp_path, rows, policy):
    expert = write_model(tmp_path / "expert", model(1, rows))
    report = merged(recipe_of(base, expert, vocabulary=policy), tmp_path / "out")
    shared = min(rows, 11) if policy == "common" else 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        out, own, start = (Checkpoint(f, "x")[name] for f in (tmp_path / "out", expert, base))
        assert torch.allclose(out[:shared], own[:shared], atol=1e-6) and torch.equal(out[shared:], start[shared:])
    assert any("rows" in note and "expert" in note for note in report.notes)


@pytest.mark.parametrize("rows", [9, 15])
def test_some_rows_of_a_fitted_tensor_are_those_of_the_whole(base, tmp_path, rows):
    expert = write_model(tmp_path / "expert", model(1, rows))
    for policy in ("base", "common"):
        view = plan(recipe_of(base, expert, vocabulary=policy)).experts[0].checkpoint
        for name in ("model.embed_tokens.weight", "model.a.weight"):
            whole = view[name]
            assert whole.shape == Checkpoint(base, "base")[name].shape
            for some in (slice(0, 4), slice(4, 6), slice(7, 11), slice(10, 11)):
                assert torch.equal(view.read(name, some), whole[some])


def test_tokenizers_that_mean_other_tokens_by_the_same_rows_are_refused(base, tmp_path):
    expert = write_tokens(write_model(tmp_path / "expert", model(1)), WORDS[::-1])
    write_tokens(base, WORDS)
    for policy in ("refuse", "common"):
        with pytest.raises(MergeError, match="Row 0 .* is 'w399' in expert 'expert', and 'w0' in the base.*gibberish"):
            plan(recipe_of(base, expert, vocabulary=policy))
    work = plan(recipe_of(base, expert, vocabulary="base"))
    assert not work.layer("lm_head.weight", "cpu").dense.any()
    assert work.layer("model.a.weight", "cpu").dense.any()
    assert any("of this expert are left out" in note for note in work.notes)


def test_a_few_renamed_tokens_are_remarked_upon_and_merged(base, tmp_path):
    expert = write_tokens(write_model(tmp_path / "expert", model(1)), ["<chat>", *WORDS[1:]], added=["<new>"])
    write_tokens(base, WORDS)
    work = plan(recipe_of(base, expert))
    assert any("1 of 400 rows mean another token" in note for note in work.notes)
    assert work.layer("lm_head.weight", "cpu").dense.any()


def test_a_tokenizer_is_read_in_each_of_its_kinds(tmp_path):
    (tmp_path / "a").mkdir()
    write_tokens(tmp_path / "a", ["x", "y"], added=["z"])
    assert tokens_of(tmp_path / "a") == {0: "x", 1: "y", 2: "z"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["x", -1.0], ["y", -2.0]]}}))
    assert tokens_of(tmp_path) == {0: "x", 1: "y"}
    assert differing_rows(tmp_path, tmp_path / "a") == (2, [])
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": [], "added_tokens": 3}))
    assert tokens_of(tmp_path) is None and differing_rows(tmp_path, tmp_path / "a") is None


def test_an_expert_that_ties_its_head_gives_its_embeddings_for_it(base, tmp_path):
    expert = write_model(tmp_path / "expert", model(1, head=False), tie_word_embeddings=True)
    work = plan(recipe_of(base, expert))
    embedding = Checkpoint(expert, "expert")["model.embed_tokens.weight"]
    assert torch.allclose(work.layer("lm_head.weight", "cpu").dense[0], embedding - work.base["lm_head.weight"])
    assert any("ties its head" in note for note in work.notes)


def test_a_head_that_the_base_ties_is_left_out_and_said(tmp_path):
    base = write_model(tmp_path / "base", model(head=False), tie_word_embeddings=True)
    expert = write_model(tmp_path / "expert", model(1), tie_word_embeddings=False)
    work = plan(recipe_of(base, expert))
    assert "lm_head.weight" in work.skipped and any("head of its own" in note for note in work.notes)


def test_a_tensor_that_an_expert_lacks_is_refused_or_the_bases(base, tmp_path):
    expert = write_model(tmp_path / "expert", model(1, head=False), tie_word_embeddings=False)
    with pytest.raises(MergeError, match="has no tensor 'lm_head.weight' .* With 'missing: base'"):
        plan(recipe_of(base, expert))
    work = plan(recipe_of(base, expert, missing="base"))
    assert not work.layer("lm_head.weight", "cpu").dense.any()
    assert any("has no 'lm_head.weight': there it is the base" in note for note in work.notes)


@pytest.mark.parametrize("mine, theirs", [("", "bert."), ("bert.", "")])
def test_names_that_differ_by_a_prefix_are_matched_and_said(tmp_path, mine, theirs):
    base = write_model(tmp_path / "base", model(prefix=mine), tie_word_embeddings=False)
    expert = write_model(tmp_path / "expert", model(1, prefix=theirs) | {"classifier.weight": torch.ones(2, 2)})
    work = plan(recipe_of(base, expert))
    wanted = model(1)["model.a.weight"] - model()["model.a.weight"]
    assert torch.allclose(work.layer(f"{mine}model.a.weight", "cpu").dense[0], wanted)
    assert any("names its tensors otherwise" in note for note in work.notes)
    assert work.skipped["classifier.weight"] == "the base has no such tensor, only 'expert'"


def test_the_nearest_name_is_looked_for_a_few_times_however_many_tensors_lack(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("mergelab.planning.fit.did_you_mean", lambda *given: asked.append(given) or "")
    names = [f"layers.{i}.a" for i in range(30)]
    base = write_model(tmp_path / "base", {f"{name}.weight": noise(2, 2).float() for name in names} | model())
    expert = write_model(tmp_path / "expert", {f"{name}.weights": noise(2, 2).float() for name in names} | model(1))
    with pytest.raises(MergeError, match=r"has no tensor 'layers.0.a.weight'.*And 29 more such"):
        plan(recipe_of(base, expert))
    assert len(asked) == 3
