"""mergekit's recipes: the same tensors as mergekit 0.1.5 made of them, and what of its format is refused."""

import json

import pytest
from making import merged
from record_mergekit_recipes import LAYERS, RECIPES, RECORDED, summary, write_models

from mergelab import Expert, MergeError, Recipe, plan
from mergelab.recipes.varying import depths, elsewhere, layer_counts, shown, value_at, with_fallback

BY_MERGEKIT = json.loads(RECORDED.read_text())
HEAD = "merge_method: ties\nbase_model: base\n"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with the models base, one and two, where the test then stands."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_of_mergekit_gives_mergekits_tensors(title, models):
    recipe = Recipe.from_dict(RECIPES[title])
    merged(recipe, "out")
    found = summary(models / "out")
    assert found.keys() == BY_MERGEKIT[title].keys()
    for name, numbers in found.items():
        assert numbers == pytest.approx(BY_MERGEKIT[title][name], abs=2e-4, rel=1e-5), name


@pytest.mark.parametrize("title", RECIPES)
def test_what_is_written_of_it_reads_back_the_same(title):
    recipe = Recipe.from_dict(RECIPES[title])
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_the_recordings_would_tell_one_recipe_from_another():
    assert len({json.dumps(tensors) for tensors in BY_MERGEKIT.values()}) == len(RECIPES)


def test_the_base_counts_in_an_average_and_nowhere_else():
    models = "models: [{model: base, parameters: {weight: 2}}, one]"
    average = Recipe.from_yaml(f"merge_method: linear\nbase_model: base\n{models}")
    assert average.experts == (Expert("base", 2.0), Expert("one"))
    assert Recipe.from_yaml(f"{HEAD}{models}").experts == (Expert("one"),)
    alone = Recipe.from_yaml("merge_method: linear\nmodels: [one, two]")
    assert (alone.base, len(alone.experts)) == ("one", 2)
    with pytest.raises(MergeError, match="no models but the base"):
        Recipe.from_yaml(f"{HEAD}models: [base]")


def test_what_has_no_effect_in_mergekit_has_none_here_and_the_plan_says_so(models):
    one = "models: [{model: one, parameters: {density: 0.2}}, two]\nparameters: {int8_mask: true, rescale: true}"
    notes = plan(Recipe.from_yaml(f"merge_method: task_arithmetic\nbase_model: base\n{one}")).notes
    assert [note.split("'")[1] for note in notes] == ["int8_mask", "rescale", "density"]
    assert notes[0] == "'int8_mask' has no effect on a merge by Task arithmetic, here as in mergekit."
    with pytest.raises(MergeError, match="with Karcher mean only 'weight' can differ"):
        plan(Recipe.from_yaml(f"merge_method: karcher\n{one}"))


def test_dare_and_della_drop_nothing_at_their_default_density(models):
    for method in ("dare_linear", "dare_ties", "della", "della_linear"):
        report = merged(Recipe("base", (Expert("one"), Expert("two")), method), method)
        assert all(set(layer.facts["entries kept"]) == {1.0} for layer in report.layers)


def test_nuslerp_without_a_base_is_written_without_one_for_mergekit_would_measure_from_it():
    recipe = Recipe.from_yaml("merge_method: nuslerp\nmodels: [one, two]")
    assert (recipe.base, recipe.settings) == ("one", {"from_zero": True})
    assert recipe.to_dict().keys() == {"merge_method", "models", "mergelab"} and recipe.runs_in_mergekit
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with_base = Recipe.from_yaml("merge_method: nuslerp\nbase_model: base\nmodels: [one, two]")
    assert with_base.settings == {} and with_base.to_dict()["base_model"] == "base"


def test_an_average_without_its_base_is_written_without_it_for_mergekit_would_count_it():
    recipe = Recipe("base", (Expert("one"), Expert("two")), "linear")
    assert "base_model" not in recipe.to_dict() and recipe.to_dict()["mergelab"] == {"base_model": "base"}
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_all_keys_travel_both_ways():
    text = (
        "merge_method: ties\nbase_model: org/base@v1\n"
        "models:\n- model: org/base@v1+org/lora@v2\n  parameters: {weight: [0.1, 1.0], density: 0.5}\n- two\n"
        "parameters: {lambda: [{filter: mlp, value: 0.5}, {value: 1.0}]}\n"
        "dtype: float32\nout_dtype: bfloat16\ntokenizer_source: base\nchat_template: auto\n"
        "mergelab: {vocabulary: common, missing: base, layers: 4, decompose_embeddings: true}\n"
    )
    recipe = Recipe.from_yaml(text)
    assert (recipe.written_dtype, recipe.vocabulary, recipe.missing, recipe.layers) == ("bfloat16", "common", "base", 4)
    assert recipe.experts[0] == Expert("org/base@v1+org/lora@v2", [0.1, 1.0], {"density": 0.5})
    assert recipe.settings == {"lambda": [{"filter": "mlp", "value": 0.5}, {"value": 1.0}]}
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_yamls_scientific_numbers_are_numbers():
    recipe = Recipe.from_yaml(
        f"{HEAD}models: [{{model: one, parameters: {{weight: 1e-2}}}}]\nparameters: {{lambda: 5e-1}}"
    )
    assert (recipe.experts[0].weight, recipe.settings) == (0.01, {"lambda": 0.5})


MODELS = "models: [one, two]\n"
SLICE = "slices: [{sources: [{model: one, layer_range: [0, 4]}, {model: two, layer_range: %s}]}]"
REFUSED = {
    MODELS + "modules: {}": "does not do mergekit's 'modules'",
    MODELS + "tokenizer: {source: base}": "use 'tokenizer_source'",
    MODELS + "tokenizer_source: union": "does not build the union of vocabularies",
    MODELS + "chat_template: chatml": "must be 'auto' or a template's own Jinja text",
    MODELS + "out_dtype: int8": "unknown dtype 'int8'",
    MODELS + "mergelab: {vocabulary: all}": "'vocabulary' must be one of refuse, base, common",
    MODELS + "mergelab: {layers: 0}": "'layers' must be a whole number",
    MODELS + SLICE % "[0, 4]": "has both 'models' and 'slices'",
    SLICE % "[4, 8]": "must be the same [0, number of layers]",
    SLICE % "[0, 3]": "must be the same [0, number of layers]",
    SLICE % "4": "must be the same [0, number of layers]",
    "slices: [{sources: []}]": "slice 1 has no 'sources'",
    "slices: [{sources: [one]}, {sources: [two]}]": "only one slice with all layers",
    "slices: [{sources: [{model: one, range: [0, 4]}]}]": "unknown key 'range'",
    MODELS + "parameters: {density: []}": "density must be a value, a list of values, or a list of filters",
    MODELS + "parameters: {density: {}}": "a filter needs a 'value'",
    MODELS + "parameters: {density: [{filtr: mlp, value: 1}]}": "Did you mean 'filter'?",
    MODELS + "parameters: {density: [0.5, {value: 1}]}": "stands among filters",
    MODELS + "parameters: {density: [{filter: 3, value: 1}]}": "'filter' must be a part of a tensor's name",
    MODELS + "parameters: {density: [{filter: mlp, value: [[1]]}]}": "a filter needs a 'value'",
    "models: [{model: one, parameters: {weight: [{filter: a, value: x}]}}]": "weight must be a number, not 'x'",
    "models: [{model: one, parameters: {weight: 1.0e+30}}]": "weight must be a number between -1e30 and 1e30",
    MODELS + "models: [three]": "line 4, is not valid YAML: the key 'models' stands twice; keep one of them.",
    "models: [{model: one, model: two}]": "the key 'model' stands twice",
    "models: [one]\nparameters: {density: 0.1, 'density': 0.2}": "the key 'density' stands twice",
}


def test_a_mapping_that_takes_over_another_one_may_say_a_key_anew():
    text = (
        f"{HEAD}parameters: &wide {{density: 0.1}}\nmodels: [{{model: one, parameters: {{<<: *wide, density: 0.2}}}}]"
    )
    recipe = Recipe.from_yaml(text)
    assert recipe.settings["density"] == 0.1 and recipe.experts[0].settings["density"] == 0.2


@pytest.mark.parametrize("text", REFUSED, ids=REFUSED.values())
def test_what_cannot_be_done_is_refused_and_says_why(text):
    with pytest.raises(MergeError) as caught:
        Recipe.from_yaml(HEAD + text)
    assert REFUSED[text] in str(caught.value)


def test_a_slice_must_be_the_whole_model_and_settings_must_be_for_somebody(models):
    text = SLICE % "[0, 4]"
    assert plan(Recipe.from_yaml(HEAD + text)).recipe.layers == LAYERS
    with pytest.raises(MergeError, match="slice has 3 layers, but 'base' has 4"):
        plan(Recipe.from_yaml(HEAD + text.replace("4", "3")))
    with pytest.raises(
        MergeError, match="Expert 'one' has its own 'lambda', but with TIES only 'weight', 'density' can"
    ):
        plan(Recipe.from_yaml(f"{HEAD}models: [{{model: one, parameters: {{lambda: 1}}}}, two]"))
    with pytest.raises(MergeError, match="weight of expert 'one' has no filter that is for 'lm_head.weight'"):
        plan(
            Recipe.from_yaml(
                f"{HEAD}models: [{{model: one, parameters: {{weight: [{{filter: model, value: 1}}]}}}}, two]"
            )
        )
    with pytest.raises(MergeError, match="'density' of TIES must be a number from 0 to 1, not 7"):
        plan(Recipe.from_yaml(f"{HEAD}{MODELS}parameters: {{density: [{{filter: mlp, value: [1, 7]}}]}}"))


def test_a_setting_is_found_by_filter_then_gradient_then_the_wider_level():
    filters = [{"filter": "q_proj", "value": [0.0, 1.0]}, {"filter": "layers", "value": 5}]
    assert [value_at(filters, "layers.3.q_proj", depth) for depth in (0, 0.25, 1)] == [0, 0.25, 1]
    assert (value_at(filters, "layers.3.k_proj", 0.5), value_at(filters, "norm", 0)) == (5, None)
    assert value_at(with_fallback(filters, [1, 3]), "norm", 0.5) == 2
    assert value_at([True, False, True], "norm", 0.6) is False
    assert (value_at([7], "norm", 1), value_at([0, 1, 0], "norm", 1)) == (7, 0)
    assert (elsewhere(filters), elsewhere([*filters, {"value": 4}]), elsewhere([1, 2])) == (None, 4, [1, 2])
    assert [shown(s) for s in (0.5, True, [1, 0.5], "word")] == ["0.5", "on", "[1, 0.5]", "word"]


def test_depth_is_counted_in_each_stack_of_layers():
    names = ["embed", "a.0.w", "a.1.w", "a.2.experts.9.w", "b.blocks.0.w", "3.w"]
    assert depths(names) == {"a.0.w": 0, "a.1.w": 0.5, "a.2.experts.9.w": 1, "b.blocks.0.w": 1, "3.w": 1}
    assert layer_counts(names) == {"a.": 3, "b.blocks.": 1, "": 4}
