"""The pictures of a repair are figures that plotly accepts, and show the numbers of the outcome."""

import math

import plotly.graph_objects as go
import pytest

from mergelab.lab.repair import story
from mergelab.plots import repair as plots
from mergelab.report import Channels, RepairReport


def checked(figure):
    """The figure, after plotly itself has validated every key."""
    return go.Figure({"data": figure["data"], "layout": {k: v for k, v in figure["layout"].items() if k != "meta"}})


def report(task, left, **scores):
    """Two sites of two channels each; the expert's variance is 1, the merge's what is left of it."""
    sites = ("m.layers.0.mlp.down_proj|in", "m.layers.1.norm|out")
    channels = tuple(
        Channels(site, (0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (m, m), (0.0, 0.0), (1.0, 1.0))
        for site, m in zip(sites, left)
    )
    return RepairReport(task, "task", "affine", 32, 100, channels, scores=scores)


REPORTS = [report("one", (0.5, 0.25), merged=0.4, repaired=0.9), report("two", (0.5, 0.125), merged=0.3, repaired=0.8)]


def every_picture(outcome):
    yield plots.variance_ratio(outcome.reports, outcome.plain, outcome.theory, plots.ALIGNED)
    yield plots.repaired_bars(outcome.reports, outcome.tested)
    yield plots.ratio_heatmap(outcome.reports)
    yield plots.deviations(outcome.reports, outcome.reports[0].channels[0].site)
    yield plots.matching(outcome.matching.objective, outcome.matching.before, outcome.matching.after)


def test_every_picture_of_the_shipped_story_is_valid_and_has_an_alternative_text():
    for figure in every_picture(story()):
        assert len(checked(figure).data) >= 1 and figure["layout"]["meta"]["alt"]


def test_a_picture_of_nothing_says_why():
    for figure in (
        plots.variance_ratio((), {}), plots.repaired_bars(()), plots.ratio_heatmap(()), plots.deviations((), "x"),
        plots.matching((), (), ()),
    ):  # fmt: skip
        checked(figure)
        assert figure["data"] == [] and figure["layout"]["meta"]["alt"].endswith(".")


def test_the_variance_is_drawn_as_the_logarithm_of_its_ratio_and_the_theory_beside_it():
    figure = plots.variance_ratio(REPORTS, {"one": REPORTS[1].channels}, theory=(0.5, 0.5))
    curves = {trace["name"]: trace["y"] for trace in figure["data"]}
    assert curves["one: merged"] == [-1, -2] and curves["two: merged"] == [-1, -3]
    assert curves["one: plain average"] == [-1, -3] and curves["one: repaired"] == [0, 0]
    assert curves["theory: (1+(N−1)ρ)/N"] == [-1, -1]


def test_a_variance_of_zero_is_drawn_at_the_bottom_and_not_at_minus_infinity():
    figure = plots.variance_ratio([report("one", (0.0, 0.5))], {})
    assert all(math.isfinite(y) for trace in figure["data"] for y in trace["y"] if y is not None)


def test_the_heatmap_has_a_column_per_site_and_names_the_site_that_is_clicked():
    trace = plots.ratio_heatmap(REPORTS)["data"][0]
    assert trace["z"] == [[-1, -2], [-1, -3]] and trace["customdata"][0][1] == "m.layers.1.norm|out"
    assert plots.ratio_heatmap(REPORTS, "repaired")["data"][0]["z"] == [[0, 0], [0, 0]]


def test_the_scatter_sets_each_channels_deviation_against_the_experts():
    traces = {trace["name"]: trace for trace in plots.deviations(REPORTS, "m.layers.1.norm|out")["data"]}
    assert traces["one: merged"]["x"] == [1, 1] and traces["one: merged"]["y"] == [0.5, 0.5]
    assert traces["one: repaired"]["y"] == [1, 1]


def test_the_histogram_counts_every_channel_once_ends_included():
    figure = plots.matching((0.1, 0.5), (-1.0, 0.0, 1.0), (0.5,))
    before, after = (trace for trace in figure["data"] if trace["type"] == "bar")
    assert sum(before["y"]) == 3 and sum(after["y"]) == 1 and "mean 0.50" in after["name"]


def test_bars_have_intervals_where_it_is_known_how_many_were_tested():
    bare, sure = plots.repaired_bars(REPORTS), plots.repaired_bars(REPORTS, {"one": 100, "two": 100})
    assert "error_y" not in bare["data"][0]
    assert sure["data"][0]["error_y"]["array"][0] == pytest.approx(0.0981, abs=1e-3)
    assert bare["layout"]["meta"]["alt"] == "one: merged 40%, repaired 90%; two: merged 30%, repaired 80%"


@pytest.mark.parametrize(
    ("site", "label"),
    [
        ("model.layers.3.mlp.down_proj|in", "3 down in"),
        ("resnet.encoder.stages.1.layers.0.layer.1.normalization|out", "1.0.1 norm"),
        ("resnet.embedder.embedder.normalization|out", "embedder"),
    ],
)
def test_sites_have_short_names(site, label):
    assert plots.site_label(site) == label
