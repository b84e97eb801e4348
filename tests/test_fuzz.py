"""Whatever stands in a recipe, a header, an adapter or a tokenizer: a merge, or one clear line; no leftovers."""

import json
import struct
from pathlib import Path

import pytest
import torch
import yaml
from making import merged, noise, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import save

pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis, which `pip install .[test]` brings")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from mergelab import MergeError, Recipe, plan  # noqa: E402
from mergelab.planning.check import check  # noqa: E402
from mergelab.recipes.mergekit_yaml import KEYS  # noqa: E402

fuzzed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = st.sampled_from(
    [*KEYS, "star", "ties", "linear", "numbers/base", "numbers/french", "model", "weight", "eta", "density", "lambda",
     "filter", "value", "mlp", "*", "float16", "base", "union", "auto", "{{x}}", "layers", "sources", "layer_range",
     "seed", "vocabulary", "decompose_embeddings", "shard_size", "5GB", "1e-3", "", "é\u2028"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.just(10**400), st.floats(), WORDS, st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)
RECIPES = st.fixed_dictionaries(
    {"merge_method": WORDS | JSON, "models": st.lists(JSON, max_size=3) | JSON},
    optional={key: JSON for key in KEYS if key not in ("merge_method", "models")},
)
GOOD = recipe_of("numbers/base", "numbers/french", "numbers/german", method="ties", settings={"density": [0.2, 0.5]})


def one_clear_line(error):
    said = str(error.value if hasattr(error, "value") else error)
    assert said and "\n" not in said and len(said) < 4000


def read_or_refused(read):
    """The recipe, which then reads back the same; None if it was refused as it should be."""
    try:
        recipe = read()
    except MergeError as error:
        return one_clear_line(error)
    assert recipe.hash == Recipe.from_yaml(recipe.to_yaml()).hash
    return recipe


@fuzzed
@given(RECIPES)
def test_any_data_is_a_recipe_or_refused(data):
    read_or_refused(lambda: Recipe.from_dict(data, "it"))


@fuzzed
@given(st.data())
def test_any_text_is_a_recipe_or_refused(data):
    text = GOOD.to_yaml()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = start + data.draw(st.integers(0, 9))
        text = (
            text[:start]
            + data.draw(st.text(max_size=4) | st.sampled_from(["&a", "*a", "{}", "[]", ":", "-", "#", "!", "1e99"]))
            + text[stop:]
        )
    read_or_refused(lambda: Recipe.from_yaml(text, "it"))


@pytest.mark.parametrize(
    "where", ["parameters: {eta: *j}", "models: *j", "dtype: *j", "merge_method: *j", "? *j\n: 1", "*j"]
)
def test_a_text_that_would_unfold_for_ever_is_refused_at_once(where):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij")
    )
    with pytest.raises(MergeError) as caught:
        Recipe.from_yaml(f"{bomb}merge_method: star\n{where}")
    one_clear_line(caught)
    with pytest.raises(MergeError) as caught:
        Recipe.from_yaml("merge_method: star\nbase_model: b\nmodels: [a]\nparameters: &s {eta: *s}")
    one_clear_line(caught)


@pytest.mark.parametrize("key", ["merge_method", "models", "dtype", "parameters", "mergelab", "chat_template"])
def test_a_number_with_too_many_digits_to_write_is_refused(key):
    for value in (10**5000, [10**5000], {"shard_size": 10**5000, "eta": 10**5000}):
        with pytest.raises(MergeError) as caught:
            plan(Recipe.from_dict(GOOD.to_dict() | {key: value}, "it"))
        one_clear_line(caught)


def merged_or_refused(recipe, out):
    """Either there is a whole folder afterwards, or nothing at all."""
    found = check(recipe)
    for problem in found.problems:
        one_clear_line(problem)
    try:
        merged(recipe, out)
    except MergeError as error:
        one_clear_line(error)
        assert [path.name for path in out.parent.iterdir() if out.name in path.name] == []
    else:
        assert not found.problems
        assert (out / "report.json").is_file()
        for path in sorted(out.iterdir()):
            path.unlink()
        out.rmdir()


def broken(data, draw):
    """The bytes of a file, with some of them changed, put in or cut out, mostly where a header is."""
    head = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, 8) | st.integers(0, head) | st.integers(0, len(data)))
        data = data[:place] + draw(st.binary(max_size=3)) + data[place + draw(st.integers(0, 3)) :]
    return data


@fuzzed
@given(st.data())
def test_a_mutated_weight_file_is_merged_or_refused_and_leaves_nothing_half_written(trio, data):
    file, whole = trio[1] / "model.safetensors", save(shifted(tiny(), 1), metadata={"format": "pt"})
    file.write_bytes(broken(whole, data.draw))
    merged_or_refused(recipe_of(*trio, method="star"), trio[0].parent / "made")


HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "U4", "C64", "what", ""])
        | JSON,
        "shape": st.lists(st.sampled_from([0, 1, 6, 8, 2**31, 2**62, -1]), max_size=4) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 192, 2**63, -8]), min_size=2, max_size=2) | JSON,
    },
)


@fuzzed
@given(HEADERS, st.sampled_from(["base", "expert-1"]))
def test_a_header_that_says_anything_is_merged_or_refused(trio, change, whose):
    file = trio[0].parent / whose / "model.safetensors"
    whole = save(tiny(), metadata={"format": "pt"})
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    header["a.weight"] |= change
    text = json.dumps(header, default=str).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    merged_or_refused(recipe_of(*trio), trio[0].parent / "made")


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 2**31, 0, 1])
def test_a_header_that_claims_to_be_huge_takes_no_memory(trio, length):
    (trio[1] / "model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":1}' * 9)
    with pytest.raises(MergeError, match="not a whole safetensors file"):
        plan(recipe_of(*trio))


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(["r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "peft_type",
                         "fan_in_fan_out", "init_lora_weights", "base_model_name_or_path", "target_parameters"]),
        JSON, max_size=4,
    ),
    st.data(),
)  # fmt: skip
def test_an_adapter_that_says_anything_is_merged_or_refused(trio, config, data):
    folder = trio[0].parent / "lora"
    if not folder.exists():
        write_adapter(folder, {"a.lora_A.weight": noise(2, 8).float(), "a.lora_B.weight": noise(6, 2).float()})
        (folder / "whole").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2} | config, default=str))
    whole = (folder / "whole").read_bytes()
    mutated = broken(whole, data.draw) if data.draw(st.booleans()) else whole
    (folder / "adapter_model.safetensors").write_bytes(mutated)
    merged_or_refused(recipe_of(trio[0], folder), trio[0].parent / "made")


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|a)*b", "a*a*a*a*a*", "(.*)*$", "x" * 400, "[", "(a{1,9}){1,9}"])
def test_a_pattern_that_would_take_for_ever_is_refused(trio, tmp_path, pattern):
    name = "a" * 60
    base = write_model(tmp_path / "named", {f"{name}.weight": torch.zeros(6, 8)})
    pair = {f"{name}.lora_A.weight": noise(2, 8).float(), f"{name}.lora_B.weight": noise(6, 2).float()}
    folder = write_adapter(tmp_path / "lora", pair, alpha_pattern={pattern: 3})
    with pytest.raises(MergeError, match="alpha_pattern"):
        plan(recipe_of(base, folder))


@fuzzed
@given(
    st.sampled_from(
        ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "model.safetensors.index.json"]
    ),
    JSON | st.binary(max_size=40),
)
def test_a_companion_that_holds_anything_is_merged_or_refused(trio, name, content):
    for folder in trio[:2]:
        text = (
            json.dumps({"model": content, "vocab_size": content}, default=str) if not isinstance(content, bytes) else ""
        )
        data = content if isinstance(content, bytes) else text.encode()
        (folder / name).write_bytes(b"---\n" + data + b"\n---\n" if name == "README.md" else data)
        (folder / "config.json").exists() or (folder / "config.json").write_text("{}")
    try:
        merged_or_refused(recipe_of(*trio, chat_template="auto"), trio[0].parent / "made")
    finally:
        for folder in trio[:2]:
            (folder / name).unlink()


def test_the_good_recipe_of_the_fuzz_is_good(tmp_path):
    assert yaml.safe_load(GOOD.to_yaml())["merge_method"] == "ties"
    merged_or_refused(GOOD, Path(tmp_path) / "made")
