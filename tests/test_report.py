"""Reports: what a run says of each tensor, and its way through JSON."""

import json

import pytest
from making import finished, merged, noise, recipe_of, write_model

from mergelab import METHODS, Report, inspect, plan
from mergelab.report import Channels, RepairReport


def test_a_report_survives_json(trio, tmp_path):
    for name, method in METHODS.items():
        report = finished(inspect(plan(recipe_of(*trio[: 1 + (method.most or 2)], method=name))))
        assert Report.from_json(report.to_json()) == report
    written = merged(recipe_of(*trio), tmp_path / "out")
    assert Report.from_json((tmp_path / "out/report.json").read_text(encoding="utf-8")) == written


def test_every_tensor_of_the_base_is_either_merged_or_said_to_be_skipped(trio):
    report = finished(inspect(plan(recipe_of(*trio, method="star"))))
    layers = {layer.name: layer for layer in report.layers}
    assert layers.keys() == {"embed.weight", "a.weight", "b.weight", "b.bias", "conv.weight", "scale"}
    assert report.skipped == {"steps": "I64, no floating-point weights: copied from the base"}
    assert {layer.name for layer in report.decomposed} == {"a.weight", "b.weight"}
    assert layers["a.weight"].shape == (6, 8) and layers["a.weight"].full_rank == 6
    assert layers["conv.weight"].full_rank == 0


def test_analysing_tells_singular_values_and_merging_the_same_facts(trio, tmp_path):
    recipe = recipe_of(*trio, method="drm_h")
    analysis, run = finished(inspect(plan(recipe))), merged(recipe, tmp_path / "out")
    layer = analysis.decomposed[0]
    assert [len(values) for values in layer.curves["singular_values"]] == [6, 6]
    assert layer.curves.keys() == {
        "singular_values", "merged_singular_values", "joint_singular_values", "ownership",
    }  # fmt: skip
    assert [layer.facts for layer in run.layers] == [layer.facts for layer in analysis.layers]
    assert not any(layer.curves for layer in run.layers)


def test_an_expert_that_leaves_a_tensor_alone_is_named(trio):
    base, expert, _ = trio
    report = finished(inspect(plan(recipe_of(base, expert, base, method="star"))))
    assert all(layer.equal_to_base == ("base",) for layer in report.layers)
    assert report.notes == ("Expert 'base' is the base itself: its delta is zero.",)


def test_tensors_are_told_in_the_order_of_the_layers(tmp_path):
    tensors = {f"layers.{i}.weight": noise(2, 3) for i in (10, 2, 1)}
    folder = write_model(tmp_path / "base", tensors)
    assert plan(recipe_of(folder, folder)).names == ("layers.1.weight", "layers.2.weight", "layers.10.weight")


def test_a_report_says_what_was_asked_in_the_words_of_a_recipe(trio):
    report = finished(inspect(plan(recipe_of(*trio, method="star", settings={"eta": 30}))))
    assert report.recipe["merge_method"] == "star"
    assert report.recipe["parameters"] == {"eta": 30.0, "rescale": True}
    assert report.experts == ("expert-1", "expert-2")
    assert json.loads(report.to_json())["device"] == "cpu"


def test_the_table_has_a_row_per_matrix_and_expert(trio):
    report = finished(inspect(plan(recipe_of(*trio, method="star"))))
    header, rows = report.table()
    assert [row[:3] for row in rows][:2] == [["a.weight", "6×8", "expert-1"], ["a.weight", "6×8", "expert-2"]]
    assert len(rows) == 4 and all(len(row) == len(header) for row in rows)


def test_a_repair_report_survives_json_and_says_its_ratios():
    one = Channels("a|out", (0.0, 1.0), (1.0, 3.0), (1.0, 1.0), (0.5, 0.5), (0.0, 1.0), (1.0, 3.0))
    report = RepairReport("french", "task", "affine", 32, 400, (one,), scores={"merged": 0.5}, notes=("n",))
    assert RepairReport.from_json(report.to_json()) == report
    assert one.ratio() == 0.25 and one.log2_ratio() == -2 and one.ratio("repaired") == 1
    assert one.offset() == pytest.approx(0.5) and one.offset("repaired") == 0
    assert report.ratios == pytest.approx((0.25, 1.0))
