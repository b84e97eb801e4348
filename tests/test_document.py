"""A report as one page: it has everything in it, asks for nothing, and what stands in a recipe stays text."""

import re
from dataclasses import replace

import pytest
from making import recipe_of

from mergelab import METHODS, inspect, plan, result
from mergelab.__main__ import main
from mergelab.lab.gallery import examples, shipped_analysis
from mergelab.plots.document import document
from mergelab.report import Report

SCORES = {"french": {"base": 0.25, "expert": 0.975, "merged": 0.585, "repaired": 0.9}}


@pytest.mark.parametrize("name", ["numbers-star", "numbers-drm-h", "numbers-average", "numbers-star-by-module"])
def test_the_page_has_recipe_tables_figures_and_versions_and_asks_for_nothing(name):
    report = replace(shipped_analysis(examples()[name].recipe), versions={"torch": "2.9"}, scores=SCORES)
    page = document(report)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page)
    assert page.count("<figure data-key=") >= 10 and 'data-key="scores"' in page
    assert all(f"<td>{layer.name}</td>" in page for layer in report.decomposed)
    assert f"merge_method: {report.recipe['merge_method']}" in page and "<dd>2.9</dd>" in page
    assert ('<label class="eta">' in page) == name.startswith("numbers-star")
    assert len(page) < 2_500_000


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_of_every_method_has_its_page(method, trio):
    names = trio if METHODS[method].most != 1 else trio[:2]
    report = result(inspect(plan(recipe_of(*names, method=method))))
    page = document(report)
    assert f"merge_method: {method}" in page and all(f"<td>{layer.name}</td>" in page for layer in report.decomposed)


def test_what_a_recipe_says_is_text_in_the_page_and_never_a_part_of_it():
    report = shipped_analysis(examples()["numbers-star"].recipe)
    evil = "</script><script>alert(1)</script>"
    renamed = {**report.recipe, "models": [{**report.recipe["models"][0], "model": evil}]}
    page = document(replace(report, recipe=renamed, experts=(evil, *report.experts[1:]), notes=(evil,)))
    assert "<script>alert" not in page


def test_scores_travel_in_the_one_json():
    report = replace(shipped_analysis(examples()["numbers-star"].recipe), scores=SCORES)
    assert Report.from_json(report.to_json()) == report


def test_the_command_writes_the_page_and_the_json(tmp_path, capsys):
    out, data = tmp_path / "report.html", tmp_path / "report.json"
    assert main(["report", "assets/recipes/numbers-star-2.yaml", str(out), "--scores", "--json", str(data)]) == 0
    report = Report.from_json(data.read_text(encoding="utf-8"))
    assert report.scores.keys() == {"french", "german"} and report.sha256 and report.versions and report.inputs
    page = out.read_text("utf-8")
    assert report.decomposed[0].curves["singular_values"] and report.sha256["model.safetensors"] in page
    assert "<h1>A merge of 2 experts by STAR</h1>" in page and "<dd>eta 40, rescale on</dd>" in page
    assert main(["report", "assets/recipes/numbers-star-2.yaml", str(tmp_path / "no" / "such.html")]) == 1
    assert "Cannot write" in capsys.readouterr().err
