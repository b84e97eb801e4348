"""Settings for some modules alone, as the page has them: lines of text, a recipe's filters, and figures."""

import json

import gradio as gr
import pytest
from making import finished, recipe_of

from mergelab import Expert, MergeError, Recipe, inspect, plan
from mergelab.lab.lab import START, Lab
from mergelab.page.filters import apart, line, parsed, parts_of, with_overrides
from mergelab.page.form import _own, _rest, _weights, draw_form
from mergelab.plots.spectra import fact_heatmap, own_etas, spectra

MODULE = "model.layers.3.mlp.down_proj.weight"


def test_lines_are_read_as_they_are_written():
    for value in (60, 0.5, True, [20, 60.5], "sum"):
        setting, entry = parsed(line("eta", value, "model.layers.3."))
        assert (setting, entry) == ("eta", {"filter": "model.layers.3.", "value": value})


@pytest.mark.parametrize(
    "text", ["", "eta", "eta 60 in mlp", "eta = in mlp", "eta = {a: 1} in mlp", "eta = [ in mlp", "eta = 60 in "]
)
def test_a_line_that_is_none_is_refused(text):
    with pytest.raises(MergeError):
        parsed(text)


def test_a_module_its_kind_and_its_layer_are_parts_of_its_name():
    assert parts_of(MODULE) == {"module": MODULE, "kind": "mlp.down_proj.weight", "layer": "model.layers.3."}
    assert parts_of("head.weight") == dict.fromkeys(("module", "kind", "layer"), "head.weight")


def test_overrides_go_before_the_plain_value_the_newest_first_and_come_apart_again():
    lines = [f"eta = 80.0 in {MODULE}", "eta = 60.0 in mlp.down_proj.weight", "drop = 0.5 in mlp"]
    settings = with_overrides({"eta": 40.0, "rescale": True}, lines)
    filters = [{"filter": MODULE, "value": 80.0}, {"filter": "mlp.down_proj.weight", "value": 60.0}, {"value": 40.0}]
    assert settings == {"eta": filters, "rescale": True}
    assert apart(settings) == ({"eta": 40.0, "rescale": True}, ["eta = 80 in " + MODULE, lines[1].replace(".0", "")])
    gradient, rest = apart({"eta": [20.0, 60.0]})
    assert (gradient, rest) == ({"eta": 20.0}, ["eta = [20.0, 60.0] in *"])
    assert with_overrides(gradient, rest)["eta"][0] == {"filter": "*", "value": [20.0, 60.0]}


def test_what_no_widget_shows_is_carried_along():
    recipe = Recipe(
        "b", (Expert("x", 1.0, {"density": 0.5}),), "ties", out_dtype="float16", vocabulary="common", layers=4
    )
    rest = _rest(recipe)
    assert rest["own"] == [("x", {"density": 0.5})]
    fields = rest["fields"]
    assert (fields["out_dtype"], fields["vocabulary"], fields["layers"]) == ("float16", "common", 4)
    assert not {"base", "experts", "method", "settings", "dtype"} & fields.keys()


def test_weights_may_be_gradients():
    assert _weights("1, [0.5, 1], 2;", 3) == [1.0, [0.5, 1.0], 2.0]
    for wrong in ("1, x", "1, [", "1, [a]", "{}"):
        with pytest.raises(MergeError, match="must be numbers with commas"):
            _weights(wrong, 2)


def test_pictures_say_which_modules_have_an_eta_of_their_own():
    start = Recipe.read(START)
    eta = [{"filter": "layers.1.mlp.down_proj", "value": 90}, {"value": 40}]
    report = finished(inspect(plan(Recipe(start.base, start.experts[:2], "star", {"eta": eta}))))
    held = own_etas(report)
    (place,) = [i for i, value in enumerate(held) if value is not None]
    assert report.decomposed[place].name == "model.layers.1.mlp.down_proj.weight" and held[place] == 90
    heat = fact_heatmap(report, "rank kept", 40)
    kept = [[layer.facts["rank kept"][e] for layer in report.decomposed] for e in range(2)]
    assert [[float(cell) for cell in row] for row in heat["data"][0]["text"]] == kept
    assert heat["layout"]["meta"]["eta"]["held"] == held
    assert spectra(report, report.decomposed[place].name, 40)["layout"]["meta"]["eta"]["held"] == 90
    assert spectra(report, report.decomposed[0].name, 40)["layout"]["meta"]["eta"]["held"] is None
    json.dumps(heat)


def test_a_gradient_gives_every_layer_its_own():
    start = Recipe.read(START)
    report = finished(inspect(plan(Recipe(start.base, start.experts[:1], "star", {"eta": [20, 80]}))))
    held = own_etas(report)
    assert held[0] == 20 and held[-1] == 80 and sorted(held) == held


def test_form_and_lab_agree_on_a_recipe_with_filters(trio):
    recipe = recipe_of(*trio, method="star", settings={"eta": [{"filter": "a.weight", "value": 10}, {"value": 100}]})
    report = finished(Lab().analyse(recipe))
    ranks = {layer.name: layer.facts["rank kept"] for layer in report.decomposed}
    assert max(ranks["a.weight"]) < min(ranks["b.weight"])


def test_what_an_expert_has_of_its_own_survives_the_form_and_stands_in_the_merges_recipe():
    text = (
        "merge_method: breadcrumbs\nbase_model: numbers/base\nmodels:\n"
        "- {model: numbers/sort, parameters: {density: [0.9, 0.4], gamma: 0.1}}\n"
        "- {model: numbers/roman, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1.0}]}}\n"
        "parameters: {density: 0.7, int8_mask: true}\nout_dtype: bfloat16\n"
    )
    recipe, lab = Recipe.from_yaml(text), Lab()
    with gr.Blocks():
        form = draw_form(lab)
    filled = form.filled(recipe)
    data = {widget: filled.get(widget, getattr(widget, "value", None)) for widget in form.inputs}
    data = {key: value.get("value") if isinstance(value, dict) and "__type__" in value else value
            for key, value in data.items()}  # fmt: skip
    again = form.recipe(data)
    assert (again.experts, again.out_dtype, again.settings["density"]) == (recipe.experts, "bfloat16", 0.7)
    run = finished(lab.merge(again))
    assert Recipe.read(run.folder / "recipe.yaml").experts == recipe.experts


def test_a_model_that_stands_twice_keeps_what_each_has_of_its_own():
    known = [("x", {"density": 0.5}), ("y", {}), ("x", {"density": 0.9})]
    assert _own(["x", "x", "z"], known) == [{"density": 0.5}, {"density": 0.9}, {}]
    assert _own(["y"], known) == [{}]
