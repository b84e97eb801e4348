"""Every picture is a figure that plotly accepts, and shows the numbers of the report."""

import base64
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from making import finished, noise, recipe_of, shifted, write_model

from mergelab import inspect, plan
from mergelab.maths.spectral import rank_keeping
from mergelab.plots import parts, shapes
from mergelab.plots import spectra as plots


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """method -> analysis of one small model with three experts, one of which leaves a matrix alone."""
    folder = tmp_path_factory.mktemp("plots")
    base = {
        "layers.0.a.weight": noise(6, 9).float(),
        "layers.1.b.weight": noise(9, 4).float(),
        "norm.weight": torch.ones(6),
    }
    third = shifted(base, seed=3) | {"layers.0.a.weight": base["layers.0.a.weight"]}
    experts = [shifted(base, seed=1), shifted(base, seed=2), third]
    folders = [write_model(folder / f"model-{i}", model) for i, model in enumerate([base, *experts])]
    return {m: finished(inspect(plan(recipe_of(*folders, method=m)))) for m in ("star", "drm_h", "ties", "linear")}


def checked(figure):
    """The figure, after plotly itself has validated every key."""
    return go.Figure({"data": figure["data"], "layout": {k: v for k, v in figure["layout"].items() if k != "meta"}})


@pytest.mark.parametrize("method", ["star", "drm_h", "ties", "linear"])
def test_every_picture_of_every_method_is_valid_and_has_an_alternative_text(reports, method):
    report = reports[method]
    module = report.decomposed[0].name
    figures = [plots.fact_heatmap(report, fact, 40) for fact in report.facts]
    figures += [
        plots.spectra(report, module, 40),
        plots.spectra(report, module, None),
        plots.joint_space(report, module),
    ]
    for figure in figures:
        checked(figure)
        assert figure["layout"]["meta"]["alt"]


def test_bars_say_their_numbers_in_the_alternative_text():
    figure = shapes.bars(["french"], {"base": [0.3], "expert": [0.97], "merged": [0.8]}, "exact match")
    assert len(checked(figure).data) == 3
    assert figure["layout"]["meta"]["alt"] == "french: base 30.0%, expert 97.0%, merged 80.0%"


def test_the_table_that_eta_indexes_in_the_browser_holds_the_ranks_that_star_keeps(reports):
    report = reports["star"]
    meta = plots.fact_heatmap(report, plots.LIVE, 40)["layout"]["meta"]["eta"]
    table = np.frombuffer(base64.b64decode(meta["table"]), "<u2").reshape(meta["shape"])
    for column, layer in enumerate(report.decomposed):
        for row, values in enumerate(layer.curves["singular_values"]):
            expected = [rank_keeping(torch.tensor(values, dtype=torch.float64), share / 100) for share in range(101)]
            assert table[row, column].tolist() == expected
        assert table[:, column, 40].tolist() == list(layer.facts["rank kept"])


def test_the_heatmap_has_a_column_per_module_and_a_row_per_expert_or_one_for_all(reports):
    per_expert = plots.fact_heatmap(reports["drm_h"], "share pruned", 40)["data"][0]
    assert np.shape(per_expert["z"]) == (3, 2) and per_expert["y"] == ["model-1", "model-2", "model-3"]
    joint = plots.fact_heatmap(reports["drm_h"], "joint rank", 40)["data"][0]
    assert np.shape(joint["z"]) == (1, 2)


def test_numbers_that_are_all_but_equal_have_one_colour_and_others_the_whole_range():
    low, high = plots._colour_range(np.array([[0.2, 0.202], [0.201, 0.2]]))
    assert (0.202 - 0.2) / (high - low) < 0.1
    assert plots._colour_range(np.array([[0.1, 0.9]])) == (0.1, 0.9)
    assert np.diff(plots._colour_range(np.zeros((1, 2)))) > 0


def test_cells_have_few_digits_and_the_same_number_of_decimals():
    assert plots._short(np.array([[0.0628, 0.1031]])) == [["0.06", "0.10"]]
    assert plots._short(np.array([[128.0, 4.2]])) == [["128", "4"]]
    assert plots._short(np.zeros((1, 1))) == [["0"]]


@pytest.mark.parametrize("fact", ["rank kept, share", "gain", "energy kept"])
@pytest.mark.parametrize("rescale", [True, False])
def test_what_eta_alone_decides_is_in_the_table_as_star_finds_it(trio, fact, rescale):
    def drawn(eta):
        report = finished(inspect(plan(recipe_of(*trio, method="star", settings={"eta": eta, "rescale": rescale}))))
        return report, plots.fact_heatmap(report, fact, eta)

    _, figure = drawn(40)
    meta = figure["layout"]["meta"]["eta"]
    table = np.frombuffer(base64.b64decode(meta["table"]), "<u2").reshape(meta["shape"]) * meta["step"]
    for eta in (1, 40, 73, 100):
        report, other = drawn(eta)
        found = np.array([layer.facts[fact] for layer in report.decomposed]).T
        assert np.allclose(table[:, :, eta], found, atol=0.6 * meta["step"])
        assert np.allclose(other["data"][0]["z"], found, atol=0.6 * meta["step"]) and checked(other)


def test_what_is_measured_of_a_merge_says_of_which_eta_it_is(reports):
    meta = plots.fact_heatmap(reports["star"], "merged change", 40)["layout"]["meta"]
    assert "eta" not in meta and meta["measured"] == 40
    assert "measured" not in plots.fact_heatmap(reports["star"], "effective rank", 40)["layout"]["meta"]


def test_only_what_star_decides_follows_eta(reports):
    report = reports["star"]
    assert plots.follows_eta(report, "rank kept") and not plots.follows_eta(report, "effective rank")
    other = replace(report, recipe=report.recipe | {"merge_method": "tsv_m"})
    assert "eta" not in plots.fact_heatmap(other, "rank kept", 40)["layout"]["meta"]


def test_a_fact_or_a_module_that_a_browser_makes_up_shows_the_first_one(reports):
    report = reports["star"]
    assert plots.fact_heatmap(report, "<b>no such</b>", 40) == plots.fact_heatmap(report, report.facts[0], 40)
    assert plots.layer_named(report, "no such").name == report.decomposed[0].name


def test_the_running_sum_of_a_spectrum_ends_at_one(reports):
    report = reports["star"]
    right = [t for t in plots.spectra(report, report.decomposed[1].name, 40)["data"] if t.get("yaxis") == "y2"]
    assert [trace["y"][-1] for trace in right] == [1.0] * 4


def test_owners_of_a_joint_direction_share_all_of_it(reports):
    report = reports["drm_h"]
    areas = [t["y"] for t in plots.joint_space(report, report.decomposed[1].name)["data"] if "stackgroup" in t]
    assert np.allclose(np.sum(areas, axis=0), 1, atol=1e-3)


def test_a_long_curve_is_drawn_with_few_points_that_include_both_ends():
    at = parts.some_of(5000)
    assert len(at) <= 160 and at[0] == 0 and at[-1] == 4999


@pytest.mark.parametrize(
    ("tensor", "short"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "3 q"),
        ("encoder.layer.11.attention.output.dense.weight", "11 output.dense"),
        ("transformer.h.0.mlp.c_fc.weight", "0 c_fc"),
        ("classifier.weight", "classifier"),
    ],
)
def test_a_module_has_a_short_name_for_an_axis(tensor, short):
    assert parts.short_name(tensor) == short
