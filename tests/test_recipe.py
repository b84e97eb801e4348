"""Recipes: mergekit's YAML both ways, one hash per recipe, and an error that names what is wrong."""

from dataclasses import replace

import pytest

from mergelab import Expert, MergeError, Recipe
from mergelab.planning.plan import _model_order
from mergelab.recipes.varying import depths, shown

TEXT = """
merge_method: star
base_model: org/base
models:
  - model: org/french
    parameters: {weight: 0.5}
  - model: folder+adapter
  - org/german
parameters: {eta: 30}
dtype: bfloat16
mergelab: {decompose_embeddings: true}
"""
RECIPE = Recipe(
    "org/base",
    (Expert("org/french", 0.5), Expert("folder+adapter"), Expert("org/german")),
    "star",
    {"eta": 30},
    dtype="bfloat16",
    decompose_embeddings=True,
)


def test_yaml_is_read():
    assert Recipe.from_yaml(TEXT) == RECIPE


@pytest.mark.parametrize("recipe", [RECIPE, Recipe("b", (Expert("é"),), "ties", {"lambda": 0.5, "normalize": False})])
def test_what_is_written_reads_back_the_same(recipe):
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_without_extras_only_keys_that_mergekit_knows_are_written():
    plain = replace(RECIPE, decompose_embeddings=False, settings={}, dtype=None)
    assert plain.to_dict().keys() == {"merge_method", "base_model", "models"}


def test_equal_recipes_have_equal_hashes_and_others_do_not():
    same = replace(RECIPE, settings={"eta": 30.0})
    assert (same, same.hash, hash(same)) == (RECIPE, RECIPE.hash, hash(RECIPE))
    others = [
        replace(RECIPE, settings={"eta": 31}),
        replace(RECIPE, base="other"),
        replace(RECIPE, experts=RECIPE.experts[::-1]),
        replace(RECIPE, dtype=None),
        replace(RECIPE, method="linear"),
        replace(RECIPE, decompose_embeddings=False),
    ]
    assert len({RECIPE.hash, *(other.hash for other in others)}) == 7


def test_names_are_short_and_no_two_are_the_same():
    sources = ["a/french", "b/french/", "base+lora", r"C:\models\german", "x", "x"]
    names = Recipe("base", tuple(map(Expert, sources)), "star").names
    assert names == ("a/french", "b/french/", "lora", "german", "x", "x (2)")


def test_steps_after_the_merge_are_a_name_or_names_with_settings():
    text = "{merge_method: star, base_model: b, models: [a], mergelab: {seed: 7, then: %s}}"
    for then, wanted in (
        ("svc", {"svc": {}}),
        ("{svc: }", {"svc": {}}),
        ("{svc: {alpha: 0.5}}", {"svc": {"alpha": 0.5}}),
    ):
        recipe = Recipe.from_yaml(text % then)
        assert recipe.then == wanted and recipe.seed == 7
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "mergelab" not in Recipe.from_yaml("{merge_method: star, base_model: b, models: [a]}").to_dict()
    assert Recipe.from_yaml(text % "svc").hash != Recipe.from_yaml(text.replace("7", "8") % "svc").hash


def test_changes_are_measured_from_a_base_of_ours_where_a_recipe_says_so():
    text = "{merge_method: nuslerp, models: [b, c, d], mergelab: {base_model: b}, parameters: {from_zero: %s}}"
    recipe = Recipe.from_yaml(text % "false")
    assert recipe == Recipe("b", (Expert("c"), Expert("d")), "nuslerp", {"from_zero": False})
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert len(Recipe.from_yaml(text % "true").experts) == 3


WRONG = {
    "": "must be a mapping with merge_method, base_model, models",
    "- a\n- b": "must be a mapping with merge_method",
    "merge_method: star\nbase_model: b": "has no 'models'",
    "merge_method: star\nmodels: [a]": "has no 'base_model'",
    "base_model: b\nmodels: [a]": "has no 'merge_method'",
    "merge_method: star\nbase_model: b\nmodels: []": "has no 'models'",
    "merge_method: star\nbase_model: b\nmodels: a": "'models' must be a list",
    "merge_method: star\nbase_model: [b]\nmodels: [a]": "'base_model' must be the name",
    "merge_method: 7\nbase_model: b\nmodels: [a]": "'merge_method' must be the name",
    "merge_metod: star\nbase_model: b\nmodels: [a]": "unknown key 'merge_metod'. Did you mean 'merge_method'?",
    "merge_method: star\nbase_model: b\nmodels: [a": "line 3, is not valid YAML",
    "merge_method: star\n\tbase_model: b": "line 2, is not valid YAML",
    "merge_method: 2024-99-99": "is not valid YAML: month must be in 1..12",
    "merge_method: \x00": "is not valid YAML: unacceptable character",
    "{merge_method: star, base_model: b, models: [a], dtype: float8}": "unknown dtype 'float8'",
    "{merge_method: star, base_model: b, models: [a], dtype: [x]}": "unknown dtype",
    "{merge_method: star, base_model: b, models: [a], dtype: bfloat}": "Did you mean 'bfloat16'?",
    "{merge_method: star, base_model: b, models: [7]}": "model 1 must be a mapping",
    "{merge_method: star, base_model: b, models: [a, {parameters: {}}]}": "model 2 has no 'model'",
    "{merge_method: star, base_model: b, models: [{modle: a}]}": "Did you mean 'model'?",
    "{merge_method: star, base_model: b, models: [{model: ' '}]}": "'model' must be the name",
    "{merge_method: star, base_model: b, models: [{model: a, parameters: {weight: much}}]}": "weight must be a number",
    "{merge_method: star, base_model: b, models: [{model: a, parameters: {weight: [x]}}]}": "weight must be a number",
    "{merge_method: star, base_model: b, models: [{model: a, parameters: {weight: .nan}}]}": "weight must be a number",
    "{merge_method: star, base_model: b, models: [{model: a, parameters: {weight: true}}]}": "weight must be a number",
    "{merge_method: star, base_model: b, models: [{model: a, parameters: [1]}]}": "parameters must be a mapping",
    "{merge_method: star, base_model: b, models: [a], parameters: [eta]}": "parameters must be a mapping",
    "{merge_method: star, base_model: b, models: [a], mergelab: true}": "mergelab must be a mapping",
    "{merge_method: star, base_model: b, models: [a], mergelab: {sed: 1}}": "mergelab has an unknown key 'sed'",
    "{merge_method: star, base_model: b, models: [a], mergelab: {decompose_embeddings: 1}}": "must be true or false",
    "{merge_method: star, base_model: b, models: [a], mergelab: {seed: -1}}": "'seed' must be a whole number",
    "{merge_method: star, base_model: b, models: [a], mergelab: {seed: true}}": "'seed' must be a whole number",
    "{merge_method: star, base_model: b, models: [a], mergelab: {seed: 1.5}}": "'seed' must be a whole number",
    "{merge_method: star, base_model: b, models: [a], mergelab: {then: [svc]}}": "then must be a mapping",
    "{merge_method: star, base_model: b, models: [a], mergelab: {then: {svc: 1}}}": "then, svc must be a mapping",
    "{merge_method: star, base_model: b, models: [a], mergelab: {base_model: c}}": "'b', and under 'mergelab' 'c'",
    "{merge_method: nuslerp, models: [a, b], parameters: {from_zero: false}}": "has no 'base_model'",
}


@pytest.mark.parametrize("text", WRONG, ids=WRONG.values())
def test_a_wrong_recipe_is_refused_in_one_line_that_says_why(text):
    with pytest.raises(MergeError) as caught:
        Recipe.from_yaml(text, "my.yaml")
    assert WRONG[text] in str(caught.value)
    assert str(caught.value).startswith("my.yaml")
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cannot_be_read_is_a_clear_error(tmp_path):
    with pytest.raises(MergeError, match="Cannot read the recipe .*No such file"):
        Recipe.read(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MergeError, match="not UTF-8"):
        Recipe.read(tmp_path / "binary.yaml")
    with pytest.raises(MergeError, match="Cannot read"):
        Recipe.read(tmp_path)


def test_the_sources_of_a_slice_are_all_that_is_merged():
    sources = "[{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]"
    recipe = Recipe.from_yaml(
        f"merge_method: linear\nbase_model: c\nparameters: {{weight: 0.5}}\nslices: [{{sources: {sources}}}]"
    )
    assert [expert.source for expert in recipe.experts] == ["a", "b"]
    recipe = Recipe.from_yaml(f"merge_method: karcher\nbase_model: c\nslices: [{{sources: {sources}}}]")
    assert recipe.settings["count_base"] is False


def test_adapters_on_one_model_are_averaged_where_no_base_is_named():
    assert Recipe.from_yaml("merge_method: linear\nmodels: [base+one, base+two]").base == "base"


def test_a_weight_that_mergekit_does_not_know_makes_a_recipe_of_ours_alone():
    text = "merge_method: model_stock\nbase_model: b\nmodels: [{{model: x, parameters: {{weight: {}}}}}, y]"
    assert Recipe.from_yaml(text.format(1)).runs_in_mergekit
    assert not Recipe.from_yaml(text.format(0.5)).runs_in_mergekit


def test_a_short_text_cannot_stand_for_a_long_setting():
    numbers = ", ".join(["1"] * 1001)
    for density in (f"[{numbers}]", f"[{{value: [{numbers}]}}]", f"[{', '.join(['{value: 1}'] * 1001)}]"):
        with pytest.raises(MergeError, match="is a list of 1001 entries; at most 1000 are taken"):
            Recipe.from_yaml(f"merge_method: ties\nbase_model: b\nmodels: [m]\nparameters: {{density: {density}}}")


@pytest.mark.parametrize("value", ["!!bool x", "!!int ''", "!!timestamp x", "2024-13-01"])
def test_a_tag_of_which_nothing_can_be_made_is_not_valid_yaml(value):
    with pytest.raises(MergeError, match="is not valid YAML"):
        Recipe.from_yaml(f"merge_method: {value}\nbase_model: b\nmodels: [m]")


@pytest.mark.parametrize("number", [0.5, 1.0, 1e-7, 0.123456789, 1 / 3, 40, 2.0**-30])
def test_a_number_that_is_shown_is_read_back_the_same(number):
    assert float(shown(number)) == number


def test_names_with_thousands_of_digits_are_names():
    name = f"layers.{'9' * 5000}.weight"
    assert depths([name, "layers.0.weight", "layers.1.weight"])["layers.1.weight"] == 1.0
    assert sorted([name, "layers.2.w"], key=_model_order)[0] == "layers.2.w"
