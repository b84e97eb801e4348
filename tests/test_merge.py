"""The folder that a merge writes: its laws, its dtypes and shards, and that it appears whole or not at all."""

import errno
import json
import os
import shutil

import pytest
import torch
from making import finished, merged, noise, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import load_file

from mergelab import METHODS, Expert, MergeError, Recipe, merge, plan
from mergelab.files.checkpoint import Checkpoint
from mergelab.files.digests import sha256_of
from mergelab.files.shards import ShardWriter
from mergelab.merging.output import is_unfinished
from mergelab.planning.check import check


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_written_tensors_are_base_plus_merged_delta(trio, tmp_path):
    merged(recipe_of(*trio), tmp_path / "out")
    base, one, other = map(weights, trio)
    out = weights(tmp_path / "out")
    assert out.keys() == base.keys()
    for name in base:
        wanted = base[name] if name == "steps" else (one[name].double() + other[name].double()) / 2
        assert torch.allclose(out[name].double(), wanted.double(), atol=1e-6), name


@pytest.mark.parametrize("method", METHODS)
def test_experts_equal_to_the_base_give_the_base_to_the_byte(trio, tmp_path, method):
    base, copies = trio[0], [tmp_path / "copy", tmp_path / "other"][: METHODS[method].most]
    for copy in copies:
        shutil.copytree(base, copy)
    merged(recipe_of(base, *copies, method=method), tmp_path / "out")
    assert all(torch.equal(tensor, weights(base)[name]) for name, tensor in weights(tmp_path / "out").items())


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_in_the_folder_merges_again_to_the_same_bytes(trio, tmp_path, method):
    experts = (Expert(str(trio[1]), 0.3), Expert(str(trio[2])))[: METHODS[method].most]
    recipe = Recipe(str(trio[0]), experts, method, dtype="bfloat16", seed=5, then={"svc": {"alpha": 0.5}})
    report = merged(recipe, tmp_path / "out")
    again = merged(Recipe.read(tmp_path / "out/recipe.yaml"), tmp_path / "again")
    assert report.sha256 == again.sha256 == {"model.safetensors": sha256_of(tmp_path / "again/model.safetensors")}
    assert (tmp_path / "out/recipe.yaml").read_bytes() == (tmp_path / "again/recipe.yaml").read_bytes()


def test_shards_stay_shards_with_their_names_and_dtypes(tmp_path):
    tensors = tiny() | {"half": noise(4, 4).half(), "brain": noise(4, 5).bfloat16(), "double": noise(3, 4)}
    tensors |= {"mask": torch.tensor([True, False, True]), "z.weight": noise(5, 5).float()}
    base = write_model(tmp_path / "base", tensors, shards=3)
    expert = write_model(tmp_path / "expert", {n: t.float() for n, t in shifted(tensors, 1).items()})
    report = merged(recipe_of(base, expert), tmp_path / "out")
    before, after = Checkpoint(base, "base"), Checkpoint(tmp_path / "out", "out")
    assert after.entries == before.entries
    assert set(report.sha256) == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert report.skipped.keys() == {"steps", "mask"}
    moved = shifted(tensors, 1)
    for name, tensor in after.items():
        assert torch.allclose(tensor.double(), moved[name].double(), rtol=1e-2, atol=1e-3), name
    assert torch.equal(after["mask"], tensors["mask"])


def test_a_single_file_of_another_name_gets_the_index_that_transformers_needs(tmp_path):
    base = write_model(tmp_path / "base", tiny())
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    merged(recipe_of(base, base), tmp_path / "out")
    assert leftovers(tmp_path / "out")[-2:] == ["recipe.yaml", "report.json"]
    assert (tmp_path / "out/model.safetensors.index.json").is_file()


def test_float64_weights_are_merged_in_float64(tmp_path):
    base = write_model(tmp_path / "base", {"a": 1 + noise(5, 5) / 1e12})
    merged(recipe_of(base, base), tmp_path / "out")
    assert torch.equal(weights(tmp_path / "out")["a"], weights(base)["a"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("keys", [{"dtype": "float64"}, {"torch_dtype": "float64"}, {}])
def test_a_recipes_dtype_is_that_of_the_weights_and_of_the_configuration(tmp_path, dtype, keys):
    base = write_model(tmp_path / "base", tiny(), **keys)
    merged(recipe_of(base, base, dtype=dtype), tmp_path / "out")
    floats = {tensor.dtype for tensor in weights(tmp_path / "out").values()} - {torch.int64}
    assert floats == {getattr(torch, dtype)}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {config[key] for key in keys or ("torch_dtype",)} == {dtype}


def test_tied_heads_are_never_written(tmp_path):
    tensors = {"model.embed_tokens.weight": noise(9, 4), "lm_head.weight": noise(9, 4)}
    base = write_model(tmp_path / "base", tensors, tie_word_embeddings=True)
    report = merged(recipe_of(base, base), tmp_path / "out")
    assert weights(tmp_path / "out").keys() == {"model.embed_tokens.weight"}
    assert report.skipped == {"lm_head.weight": "tied to the embeddings: not written"}
    untied = write_model(tmp_path / "untied", tensors, tie_word_embeddings=False)
    assert "lm_head.weight" in plan(recipe_of(untied, untied)).names


def test_tensors_of_experts_that_the_base_has_not_are_listed_with_their_owner(trio, tmp_path):
    extra = write_model(tmp_path / "extra", tiny() | {"lm_head.weight": noise(11, 6).float()})
    report = merged(recipe_of(*trio, extra), tmp_path / "out")
    assert report.skipped["lm_head.weight"] == "the base has no such tensor, only 'extra'"
    assert "lm_head.weight" not in weights(tmp_path / "out")


def test_tables_are_decomposed_only_if_the_recipe_says_so(trio):
    by_default, asked = (
        {name for name in work.names if work.layer(name, "cpu").decompose}
        for work in (plan(recipe_of(*trio)), plan(recipe_of(*trio, decompose_embeddings=True)))
    )
    assert by_default == {"a.weight", "b.weight"}
    assert asked == by_default | {"embed.weight"}


def test_everything_beside_the_weights_comes_from_the_base_but_for_pickles_and_code(trio, tmp_path):
    base = trio[0]
    carried = ("tokenizer.json", "vocab.txt", "chat_template.jinja", "spiece.model", "generation_config.json")
    for name in (*carried, "pytorch_model.bin", "modeling_tiny.py", "adapter_config.json", "training_args.bin"):
        (base / name).write_text("{}")
    (base / "README.md").write_text("---\nlicense: mit\n---\nAbout the base.")
    merged(recipe_of(*trio), tmp_path / "out")
    ours = ("README.md", "config.json", "model.safetensors", "recipe.yaml", "report.json")
    assert leftovers(tmp_path / "out") == sorted([*carried, *ours])
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and "base_model:\n- base\n- expert-1\n" in card and "merge_method: linear" in card


def test_a_merge_that_is_stopped_leaves_nothing(trio, tmp_path):
    before = leftovers(tmp_path)
    job = merge(plan(recipe_of(*trio)), tmp_path / "made/for/out")
    next(job)
    assert leftovers(tmp_path) != before
    job.close()
    assert leftovers(tmp_path) == before


@pytest.mark.parametrize("writes", [0, 1, 4])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(trio, tmp_path, monkeypatch, writes):
    before, write, done = leftovers(tmp_path), ShardWriter._write, []

    def full(self, *data):
        if len(done) >= writes:  # two threads may step over the number
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(write(self, *data))

    monkeypatch.setattr(ShardWriter, "_write", full)
    with pytest.raises(MergeError, match="The disk is full"):
        merged(recipe_of(*trio), tmp_path / "made/for/out")
    assert leftovers(tmp_path) == before


def test_nothing_is_overwritten_but_an_empty_folder_is_used(trio, tmp_path):
    job = recipe_of(*trio)
    for taken in (trio[0], trio[0] / "config.json", "."):
        with pytest.raises(MergeError, match="exists already"):
            merged(job, taken)
    (tmp_path / "empty").mkdir()
    merged(job, tmp_path / "empty")
    assert (tmp_path / "empty/model.safetensors").is_file()


@pytest.mark.parametrize("out", ["file/out", "file/deep/er", "bad\0name"])
def test_a_place_that_cannot_be_written_is_a_clear_error(trio, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(MergeError, match="Cannot write"):
        merged(recipe_of(*trio), f"{tmp_path}/{out}")


@pytest.mark.parametrize("length", [250, 300])  # the hidden folder's name is longer than its own
def test_a_name_that_is_too_long_is_a_clear_error(trio, tmp_path, length):
    out = f"{tmp_path}/{'x' * length}"
    for job in (lambda: merged(recipe_of(*trio), out), lambda: is_unfinished(out, "0123456789ab")):
        with pytest.raises(MergeError, match="too long for this disk. Choose a shorter one"):
            job()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files the Linux way")
def test_no_file_stays_open_after_an_error(trio, tmp_path):
    def attempt(i):
        with pytest.raises(MergeError):
            merged(recipe_of(*trio), tmp_path / f"out-{i}")
        return len(os.listdir("/proc/self/fd"))

    tensors = tiny() | {"b.bias": torch.full((8,), float("nan"))}
    shutil.rmtree(trio[2])
    write_model(trio[2], tensors)
    assert attempt(0) == attempt(1)


def test_weights_too_large_for_the_dtype_are_refused(tmp_path):
    base = write_model(tmp_path / "base", {"a": torch.full((2, 2), 1e5)})
    with pytest.raises(MergeError, match="merged 'a' does not fit into F16"):
        merged(recipe_of(base, base, dtype="float16"), tmp_path / "out")
    near = write_model(tmp_path / "near", {"a": torch.full((2, 2), 2e38)})
    with pytest.raises(MergeError, match="exceeds the range"):
        finished(merge(plan(Recipe(str(base), (Expert(str(near), 5.0),), "task_arithmetic")), tmp_path / "out"))
    assert leftovers(tmp_path) == ["base", "near"]


def test_a_step_after_the_merge_is_taken_reported_and_cited(trio, tmp_path):
    plain, then = (recipe_of(*trio, method="task_arithmetic", then=steps) for steps in ({}, {"svc": {}}))
    before, after = merged(plain, tmp_path / "plain"), merged(then, tmp_path / "then")
    for one, other in zip(before.layers, after.layers):
        assert ("norm after calibration" in other.facts) == other.decomposed
        assert other.facts["merged change"] <= one.facts["merged change"] * (1 + 1e-6)
    assert "**SVC** ([arXiv 2602.05536]" in (tmp_path / "then/README.md").read_text(encoding="utf-8")
    assert "SVC" not in (tmp_path / "plain/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("alpha", "here", "elsewhere"),
    [([0.5, 1.9], 0.5, 0.5), ([{"filter": "a.", "value": 2}], 2, 1), ([{"filter": "a.", "value": [0.5, 1]}], 0.5, 1)],
    ids=str,
)
def test_a_setting_of_a_step_may_vary_from_tensor_to_tensor(trio, tmp_path, alpha, here, elsewhere):
    """No tensor of these models lies in a layer, so a gradient is at its beginning."""
    found = {}
    for name, value in {"varying": alpha, "here": here, "elsewhere": elsewhere}.items():
        merged(recipe_of(*trio, method="task_arithmetic", then={"svc": {"alpha": value}}), tmp_path / name)
        found[name] = weights(tmp_path / name)
    for name, tensor in found["varying"].items():
        assert torch.equal(tensor, found["here" if name.startswith("a.") else "elsewhere"][name]), name


@pytest.mark.parametrize("method", ["model_stock", "slerp", "sce", "ties"])
def test_the_base_under_another_spelling_is_no_expert_either(trio, tmp_path, method):
    base, one, other = trio
    experts = (one,) if method == "slerp" else (one, other)
    plain = plan(recipe_of(base, *experts, method=method)).recipe
    (tmp_path / "link").symlink_to(base)
    for spelled in (f"{base}/", tmp_path / "link", f"{one}/../base"):
        listed = recipe_of(base, spelled, *experts, method=method)
        assert plan(listed).recipe == plain
        found = check(listed)
        assert found.problems == () and len(found.models) == 1 + len(experts)
    with pytest.raises(MergeError, match="beside the base, and the recipe has 0"):
        plan(recipe_of(base, tmp_path / "link", method=method))


def test_the_base_under_another_spelling_is_counted_once(trio):
    models = [{"model": f"{trio[0]}/"}, {"model": str(trio[1])}]
    data = {"merge_method": "linear", "base_model": str(trio[0]), "models": models, "parameters": {"weight": 1}}
    assert len(plan(Recipe.from_dict(data)).experts) == 2


def test_a_base_that_is_listed_among_the_models_is_no_expert_where_mergekit_makes_none_of_it(trio, tmp_path):
    base, one, other = trio
    for method, experts in {"model_stock": (one, other), "slerp": (one,), "nuslerp": (one, other)}.items():
        listed = merged(recipe_of(base, base, *experts, method=method), tmp_path / f"{method}-listed")
        assert listed.sha256 == merged(recipe_of(base, *experts, method=method), tmp_path / method).sha256


def test_an_expert_that_is_listed_twice_is_remarked_upon(trio, tmp_path):
    base, one, _ = trio
    adapter = write_adapter(tmp_path / "lora", {"b.bias": noise(8).float()})
    for first, again in ((one, one), (one, f"{one}/../expert-1/"), (adapter, adapter), (f"{one}+{adapter}",) * 2):
        work = plan(recipe_of(base, first, again))
        names = work.recipe.names
        assert work.notes == (f"Expert '{names[1]}' is the same as expert '{names[0]}': it counts twice.",)
    assert plan(recipe_of(base, one, adapter, f"{one}+{adapter}")).notes == ()


def test_where_all_weights_are_0_the_report_says_that_the_merge_is_the_base(trio, tmp_path):
    note = "All weights are 0: the merge is the base."
    for i, (weights, said) in enumerate((((0, 0), True), ((0, 0.5), False))):
        experts = tuple(Expert(str(folder), weight) for folder, weight in zip(trio[1:], weights))
        report = merged(Recipe(str(trio[0]), experts, "ties"), tmp_path / f"out-{i}")
        assert (note in report.notes) == said
    one = Recipe(str(trio[0]), experts[:1], "multislerp")  # takes a model alone as it is, whatever its weight
    assert note not in merged(one, tmp_path / "alone").notes


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_a_tensor_that_holds_floats_in_an_expert_alone_is_copied_and_said(trio, tmp_path, dtype):
    base = write_model(tmp_path / "whole", tiny() | {"a.weight": tiny()["a.weight"].to(dtype)})
    report = merged(recipe_of(base, trio[1]), tmp_path / "out")
    code = Checkpoint(base, "base").entries["a.weight"].dtype
    said = f"{code} in the base, F32 in expert 'expert-1': copied from the base, not merged"
    assert report.skipped["a.weight"] == said and torch.equal(
        weights(tmp_path / "out")["a.weight"], weights(base)["a.weight"]
    )


@pytest.mark.parametrize(
    "lack", [torch.OutOfMemoryError("cuda"), RuntimeError("can't allocate memory: 9 bytes")], ids=str
)
def test_a_tensor_that_the_memory_has_no_room_for_is_named_and_nothing_is_left(trio, tmp_path, monkeypatch, lack):
    def refused(self, layer, *merged, **settings):
        raise lack

    monkeypatch.setattr(type(METHODS["linear"]), "__call__", refused)
    with pytest.raises(MergeError, match=r"no memory left to merge '.+' \(.+\) by Average. Use fewer '--workers'"):
        merged(recipe_of(*trio, method="linear"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
