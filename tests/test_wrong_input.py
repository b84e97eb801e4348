"""What a user can get wrong in the files is one clear MergeError that names the culprit, before any work is done."""

import builtins
import errno
import json
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
from making import merged, noise, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import load_file, save_file

from mergelab import Expert, MergeError, Recipe, plan
from mergelab.files.checkpoint import Checkpoint
from mergelab.planning.check import check


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


def broken_config(folder, text="{", encoding="utf-8"):
    write_model(folder, tiny())
    (folder / "config.json").write_text(text, encoding)


def truncated(folder):
    write_model(folder, tiny())
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def no_safetensors(folder):
    write_model(folder, tiny())
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all, but longer than a header")


def pickled(folder):
    write_model(folder, tiny())
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def shard_missing(folder):
    write_model(folder, tiny(), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_of(folder, **index):
    write_model(folder, tiny(), shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def two_models(folder):
    write_model(folder, tiny())
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    shutil.copy(folder / "one.safetensors", folder / "two.safetensors")


def adapter(folder, module="a", shape=(6, 8), **config):
    write_adapter(
        folder,
        {f"{module}.lora_A.weight": noise(2, shape[1]).float(), f"{module}.lora_B.weight": noise(shape[0], 2).float()},
        **config,
    )


def half_adapter(folder):
    write_adapter(folder, {"a.lora_A.weight": noise(2, 8).float()})


def pickled_adapter(folder):
    adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


EXPERTS = {
    "truncated": (truncated, "'model.safetensors' of '.*' is not a whole safetensors file"),
    "corrupt": (no_safetensors, "'model.safetensors' of '.*' is not a whole safetensors file"),
    "pickle": (pickled, "pickled weights only, and those can run code"),
    "empty folder": (lambda folder: folder.mkdir(), "has no safetensors weights"),
    "two models": (two_models, "several safetensors files"),
    "shard missing": (shard_missing, "lacks model-00002-of-00002.safetensors, which its index names"),
    "bad index": (lambda folder: index_of(folder, weight_map=[]), "without a usable weight_map"),
    "index leaves": (lambda folder: index_of(folder, weight_map={"a": "../x.bin"}), "without a usable weight_map"),
    "index lies": (
        lambda folder: index_of(folder, weight_map={"ghost": "model-00001-of-00002.safetensors"}),
        "lacks the tensor 'ghost'",
    ),
    "broken config": (broken_config, "Cannot read '.*expert/config.json'"),
    "config of another kind": (lambda f: broken_config(f, "[]"), "expert/config.json' should hold a JSON object"),
    "config in UTF-16": (lambda f: broken_config(f, "{}", "utf-16"), "Cannot read '.*expert/config.json'"),
    "tensor missing": (
        lambda folder: write_model(folder, without(tiny(), "b.weight")),
        "Expert 'expert' has no tensor 'b.weight' that the base has. Was it fine-tuned from",
    ),
    "other shape": (
        lambda folder: write_model(folder, tiny() | {"a.weight": torch.zeros(7, 8)}),
        r"'a.weight' is \[7, 8\] in expert 'expert', but \[6, 8\] in the base",
    ),
    "quantised": (
        lambda folder: write_model(folder, tiny() | {"a.weight": torch.zeros(6, 8, dtype=torch.int8)}),
        "'a.weight' of expert 'expert' is I8: quantised",
    ),
    "whole numbers": (
        lambda folder: write_model(folder, tiny() | {"a.weight": torch.zeros(6, 8, dtype=torch.int64)}),
        "'a.weight' of expert 'expert' is I64, and the base's is F32: only floats are merged with floats. Was it",
    ),
    "truths": (
        lambda folder: write_model(folder, tiny() | {"a.weight": torch.zeros(6, 8, dtype=torch.bool)}),
        "'a.weight' of expert 'expert' is BOOL, and the base's is F32",
    ),
    "another family": (
        lambda folder: write_model(folder, {"h.0.weight": noise(4, 4).float(), "b.bias": noise(9).float()}),
        r"'.*/expert' is no fine-tune of '.*/base': 0 of 6 tensors fit. Expert 'expert' has no tensor 'a.weight'",
    ),
    "adapter elsewhere": (
        lambda folder: adapter(folder, "layers.0.q", base_model_name_or_path="org/other"),
        "changes 'layers.0.q.weight', which the base does not have. It says it was trained on 'org/other'",
    ),
    "adapter too wide": (
        lambda folder: adapter(folder, "a", (6, 9)),
        r"for another base: 'a.weight' is \[6, 9\], but in the base it is \[6, 8\]",
    ),
    "quantised adapter": (
        lambda folder: write_adapter(
            folder, {"a.lora_A.weight": torch.ones(2, 8, dtype=torch.int8), "a.lora_B.weight": noise(6, 2).float()}
        ),
        "'base_model.model.a.lora_A.weight' of adapter '.*expert' is I8: only floating-point weights",
    ),
    "float8 adapter": (
        lambda folder: write_adapter(folder, {"a.modules_to_save.weight": torch.ones(6, 8).to(torch.float8_e4m3fn)}),
        "of adapter '.*expert' is F8_E4M3: only floating-point weights",
    ),
    "half an adapter": (half_adapter, "only half of the pair A, B for 'a.weight'"),
    "empty adapter": (lambda folder: write_adapter(folder, {}), "is empty"),
    "strange adapter": (lambda f: write_adapter(f, {"a.lora_magnitude": noise(2)}), "holds .*no LoRA matrix"),
    "pickled adapter": (pickled_adapter, "has no adapter_model.safetensors"),
    "another kind": (lambda folder: adapter(folder, peft_type="IA3"), "is of the kind IA3"),
    "DoRA without magnitudes": (
        lambda folder: adapter(folder, use_dora=True),
        "magnitude of 'a.weight' .* fits no pair",
    ),
    "a routed adapter": (lambda folder: adapter(folder, arrow_config={"k": 1}), "uses 'arrow_config'"),
    "PiSSA": (lambda folder: adapter(folder, init_lora_weights="pissa_niter_4"), "changed the base itself"),
    "alpha": (lambda folder: adapter(folder, lora_alpha="16"), "no usable lora_alpha"),
    "another rank": (lambda f: adapter(f, r=16), "says that 'a.weight' has rank 16, but its matrices have 2"),
    "another rank by pattern": (
        lambda folder: adapter(folder, rank_pattern={"a": 3}),
        "says that 'a.weight' has rank 3, but its matrices have 2",
    ),
    "rank pattern": (lambda f: adapter(f, rank_pattern={"[": 3}), "rank_pattern '\\[' is not a valid pattern"),
    "alpha pattern": (lambda folder: adapter(folder, alpha_pattern={"[": 3}), "not a valid pattern"),
}


@pytest.mark.parametrize("case", EXPERTS)
def test_an_expert_that_does_not_fit_is_refused_and_says_why(trio, tmp_path, case):
    make, message = EXPERTS[case]
    make(tmp_path / "expert")
    with pytest.raises(MergeError, match=message):
        plan(recipe_of(*trio, tmp_path / "expert"))


BASES = {
    "truncated": (truncated, "not a whole safetensors file"),
    "pickle": (pickled, "pickled weights only"),
    "broken config": (broken_config, "Cannot read '.*config.json'"),
    "adapter": (adapter, "is an adapter, not a model"),
    "no floats": (lambda folder: write_model(folder, {"steps": torch.arange(3)}), "no floating-point weights"),
    "quantised": (lambda folder: write_model(folder, tiny(), quantization_config={"bits": 4}), "is quantised"),
    "float8": (
        lambda folder: write_model(folder, {"a": torch.zeros(2, 2).to(torch.float8_e4m3fn), "b": torch.zeros(2)}),
        "is quantised",
    ),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_cannot_be_merged_is_refused_and_says_why(tmp_path, case):
    make, message = BASES[case]
    make(tmp_path / "base")
    with pytest.raises(MergeError, match=message):
        plan(recipe_of(tmp_path / "base", tmp_path / "base"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("who", [0, 2])
def test_a_nan_names_the_tensor_and_whose_it_is_and_leaves_nothing(trio, tmp_path, value, who):
    tensors = tiny()
    tensors["b.weight"][3, 2] = value
    save_file(tensors, trio[who] / "model.safetensors", metadata={"format": "pt"})
    name = "expert 'expert-2'" if who else "the base"
    with pytest.raises(MergeError, match=f"'b.weight' of {name}.* holds NaN or an infinity"):
        merged(recipe_of(*trio), tmp_path / "out")
    assert not any("out" in path.name for path in tmp_path.iterdir())


def test_numbers_that_the_bases_float32_cannot_hold_are_called_that_and_not_broken(trio, tmp_path):
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tiny().items()}
    save_file(wide | {"b.weight": wide["b.weight"] * 1e100}, trio[2] / "model.safetensors")
    said = "The change of 'b.weight' in expert 'expert-2' is beyond the range of float32"
    for method in ("linear", "star"):
        with pytest.raises(MergeError, match=said):
            merged(recipe_of(*trio, method=method), tmp_path / "out")
    save_file(wide, trio[0] / "model.safetensors")
    assert merged(recipe_of(*trio), tmp_path / "out").sha256


@pytest.mark.parametrize("who", [0, 2])
def test_numbers_whose_squares_float64_cannot_hold_are_refused_by_name(trio, tmp_path, who):
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tiny().items()}
    save_file(wide, trio[0] / "model.safetensors")
    save_file(wide | {"b.bias": wide["b.bias"] * 1e200}, trio[who] / "model.safetensors")
    with pytest.raises(MergeError, match="'b.bias' holds numbers too large for their squares to be summed"):
        merged(recipe_of(*trio), tmp_path / "out")


def test_a_nan_in_an_adapter_names_the_tensor_and_the_expert(trio, tmp_path):
    pair = {"a.lora_A.weight": torch.full((2, 8), float("nan")), "a.lora_B.weight": torch.ones(6, 2)}
    write_adapter(tmp_path / "lora", pair)
    with pytest.raises(MergeError, match="'a.weight' of expert 'lora' holds NaN"):
        merged(recipe_of(trio[0], tmp_path / "lora"), tmp_path / "out")


@pytest.mark.parametrize("behind", [True, False])
def test_a_change_of_a_tied_head_is_refused_and_not_dropped(tmp_path, behind):
    tensors = {"model.embed_tokens.weight": noise(9, 4).float(), "lm_head.weight": noise(9, 4).float()}
    base = write_model(tmp_path / "base", tensors, tie_word_embeddings=True)
    write_model(tmp_path / "expert", shifted(tensors, 1), tie_word_embeddings=True)
    adapter(tmp_path / "lora", "lm_head", (9, 4))
    source = f"{tmp_path}/expert+{tmp_path}/lora" if behind else tmp_path / "lora"
    with pytest.raises(MergeError, match="lora' changes 'lm_head.weight', which '.*' ties to its embeddings") as caught:
        plan(recipe_of(base, source))
    assert check(recipe_of(base, source)).problems == (str(caught.value),)


def test_a_missing_folder_says_which_one_was_meant(trio, tmp_path):
    with pytest.raises(MergeError, match="There is no folder .*expert-3'. Did you mean '.*expert-[12]'"):
        plan(recipe_of(*trio, tmp_path / "expert-3"))
    with pytest.raises(MergeError, match="config.json' is a file. A model is a folder"):
        plan(recipe_of(trio[0], trio[0] / "config.json"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MergeError, match="loop' is a symbolic link that leads to nothing"):
        plan(recipe_of(trio[0], tmp_path / "loop"))
    for source in ("x" * 5000, "a\0b", "~nobody-of-this-name/x", "a b c"):
        with pytest.raises(MergeError):
            plan(recipe_of(trio[0], source))


@pytest.mark.parametrize("first", [True, False])
def test_of_a_tensor_in_two_shards_the_one_that_the_index_names_counts(tmp_path, first):
    folder = write_model(tmp_path / "model", tiny(), shards=2)
    named, other = (f"model-0000{i}-of-00002.safetensors" for i in ((1, 2) if first else (2, 1)))
    for file, value in ((named, 1.0), (other, 2.0)):
        save_file(load_file(folder / file) | {"twice": torch.full((2, 2), value)}, folder / file)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["twice"] = named
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Checkpoint(folder, "model")["twice"].unique().tolist() == [1.0]


@pytest.fixture
def forbidden(monkeypatch):
    """forbidden(path): from now on nobody may read that file or folder (root may read all that has no rights)."""

    def forbid(path):
        real = {"open": builtins.open, "access": os.access}

        def refusing(name, *given, **more):
            if os.fspath(name) == str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
            return real["open"](name, *given, **more)

        monkeypatch.setattr(builtins, "open", refusing)
        monkeypatch.setattr(os, "access", lambda name, *given: name != path and real["access"](name, *given))

    return forbid


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "'{path}' cannot be looked into: permission denied"),
        ("model.safetensors", "Cannot read '{path}': Permission denied"),
        ("LICENSE", "Cannot read '{path}': Permission denied"),
    ],
    ids=["folder", "weights", "companion"],
)
def test_what_may_not_be_read_is_said_by_check_and_before_any_tensor_is_merged(trio, place, said, forbidden):
    (trio[0] / "LICENSE").write_text("free")
    path = trio[0] / place
    forbidden(path)
    with pytest.raises(MergeError, match=re.escape(said.format(path=path))) as caught:
        plan(recipe_of(*trio))
    assert str(caught.value) in check(recipe_of(*trio)).problems


def test_what_stands_behind_a_plus_must_be_an_adapter(trio):
    with pytest.raises(MergeError, match="what stands behind '\\+' must be a LoRA adapter"):
        plan(recipe_of(trio[0], f"{trio[1]}+{trio[2]}"))


def test_methods_settings_and_the_number_of_experts_are_checked_before_any_file_is_opened():
    nowhere = Recipe("/nowhere", (), "star")
    with pytest.raises(MergeError, match="There is no merge method 'starr'. Did you mean 'star'?"):
        plan(Recipe("/nowhere", (), "starr"))
    with pytest.raises(MergeError, match="STAR has no setting 'etta'. Did you mean 'eta'?"):
        plan(Recipe("/nowhere", (), "star", {"etta": 3}))
    with pytest.raises(MergeError, match="'eta' of STAR must be a number from 1 to 100, not 300"):
        plan(Recipe("/nowhere", (), "star", {"eta": 300}))
    with pytest.raises(MergeError, match="STAR needs at least 1 expert"):
        plan(nowhere)
    with pytest.raises(MergeError, match="DRM-H needs at least 2 experts, and the recipe has 1"):
        plan(recipe_of("/nowhere", "/nowhere", method="drm_h"))
    with pytest.raises(MergeError, match="SLERP merges the base with 1 other model, and the recipe has 2. .* NuSLERP"):
        plan(recipe_of("/nowhere", "/one", "/nowhere", "/other", method="slerp"))
    with pytest.raises(MergeError, match="NuSLERP needs at least 2 experts beside the base, and the recipe has 1"):
        plan(recipe_of("/nowhere", "/nowhere", "/one", method="nuslerp"))
    with pytest.raises(MergeError, match="There is no step 'svd' to take after a merge. Did you mean 'svc'?"):
        plan(recipe_of("/nowhere", "/one", then={"svd": {}}))
    with pytest.raises(MergeError, match="'alpha' of SVC must be a number from 0.1 to 2, not 7"):
        plan(recipe_of("/nowhere", "/one", then={"svc": {"alpha": 7}}))
    with pytest.raises(
        MergeError, match="'inner' of Core space must be ties or .* or iso_c, not 'tie'. Did you mean 'ties'?"
    ):
        plan(recipe_of("/nowhere", "/one", method="core_space", settings={"inner": "tie"}))


@pytest.mark.parametrize(
    ("method", "settings", "hint", "mended"),
    [
        ("linear", {}, "'normalize: false'", {"normalize": False}),
        ("multislerp", {}, "'normalize_weights: false'", {"normalize_weights": False}),
        ("core_space", {"inner": "linear"}, "'inner: task_arithmetic'", {"inner": "task_arithmetic"}),
    ],
    ids=["linear", "multislerp", "core_space"],
)
def test_weights_that_add_up_to_nothing_have_no_average_and_no_plan(trio, method, settings, hint, mended):
    varying = [{"filter": "b.", "value": -1.0}, {"value": 1.0}]
    for weight in (-1.0, varying):
        experts = (Expert(str(trio[1])), Expert(str(trio[2]), weight))
        recipe = Recipe(str(trio[0]), experts, method, settings)
        with pytest.raises(MergeError, match=f"add up to 0. Change a weight, or set {hint}") as caught:
            plan(recipe)
        assert check(recipe).problems == (str(caught.value),)
        assert plan(replace(recipe, settings=mended)).names


def test_an_expert_may_be_in_another_dtype_and_in_shards(trio, tmp_path):
    halves = {name: t.bfloat16() if t.is_floating_point() else t for name, t in shifted(tiny(), 7).items()}
    write_model(tmp_path / "halves", halves, shards=3)
    assert merged(recipe_of(*trio, tmp_path / "halves"), tmp_path / "out").layers
