"""A sweep's point is the merge that its recipe makes, in weights and in scores; its verdict says how sure it is."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from making import finished, recipe_of
from safetensors.torch import load_file

from mergelab import METHODS, Expert, Knob, MergeError, Recipe, merge, plan
from mergelab.__main__ import main
from mergelab.assets import ASSETS
from mergelab.lab.lab import Lab
from mergelab.lab.own import own_questions
from mergelab.scores.knobs import EXPERTS, MOST_POINTS, checked_values, knobs_of, sensible_range, spread, values_from
from mergelab.scores.resident import Resident, places_of
from mergelab.scores.scoring import TaskScore
from mergelab.scores.sweep import _bytes as held_bytes
from mergelab.scores.sweep import _Layers as Layers
from mergelab.scores.sweep import at, sweep, written
from mergelab.scores.sweep_report import Point, SweepReport, verdict

TRIO = tuple(Expert(f"numbers/{name}") for name in ("french", "german", "english-lora"))
STAR = Recipe("numbers/base", TRIO, "star", {"eta": 40.0})


def some(recipe):
    """The first forty questions of each of the recipe's tasks."""
    return [type(q)(q.task, q.pairs[:40], q.measure, q.ends) for q in own_questions(recipe)]


def held(monkeypatch):
    """What every point has put into the resident model: a list of name -> tensor, one per point."""
    points, put = [], Resident.put

    def noted(self, name, tensor):
        if not points or name in points[-1]:
            points.append({})
        points[-1][name] = tensor
        put(self, name, tensor)

    monkeypatch.setattr(Resident, "put", noted)
    return points


@pytest.mark.parametrize(
    ("method", "knob", "values"),
    [
        ("star", "eta", (30, 60)),
        ("drm_h", "drop", (0.2, 0.8)),
        ("task_arithmetic", "lambda", (0.4,)),
        ("star", EXPERTS, (2, 3)),
    ],
)
def test_the_weights_at_a_point_are_those_of_the_merge(method, knob, values, monkeypatch, tmp_path):
    recipe, points = Recipe("numbers/base", TRIO, method), held(monkeypatch)
    report = finished(Lab(tmp_path / "lab", device="cpu").sweep(recipe, knob, values, some(recipe)[:1]))
    assert [point.value for point in report.points] == list(values)
    for i, point in enumerate(report.points):
        finished(merge(plan(point.recipe), tmp_path / str(i)))
        file = load_file(tmp_path / str(i) / "model.safetensors")
        swept = [weights for weights in points if all(torch.equal(weights[name], file[name]) for name in file)]
        assert len(swept) == 1, f"{knob} {point.value}"


def test_the_weights_at_a_point_are_in_the_number_format_that_the_merge_writes(monkeypatch, tmp_path):
    points = held(monkeypatch)
    recipe = Recipe("numbers/base", TRIO, "star", dtype="float32", out_dtype="bfloat16")
    (point,) = finished(Lab(tmp_path / "lab", device="cpu").sweep(recipe, "eta", [40], some(recipe)[:1])).points
    finished(merge(plan(point.recipe), tmp_path / "out"))
    file = load_file(tmp_path / "out" / "model.safetensors")
    assert any(all(torch.equal(weights[name], file[name]) for name in file) for weights in points)


def test_a_point_scores_as_the_merge_does(tmp_path):
    lab = Lab(tmp_path, device="cpu")
    pair = Recipe("numbers/base", TRIO[1:], "star")
    (point,) = finished(lab.sweep(pair, "eta", [50])).points
    run = finished(lab.merge(point.recipe))
    assert point.scores == finished(lab.scores(run)).of("merged")


def test_the_knob_at_its_end_is_the_average_where_the_method_says_so():
    report = finished(sweep(plan(STAR), "eta", [100, 20]))
    low, high = report.points
    assert high.facts["merged change"] == pytest.approx(report.baselines[0].facts["merged change"], rel=1e-5)
    assert high.facts["cosine to the average"] == pytest.approx(1, abs=1e-6)
    assert low.facts["rank kept"] < high.facts["rank kept"] and low.facts["gain"] > high.facts["gain"] == 1
    assert low.facts["cosine to the average"] < 1 and report.best is None


def test_geometry_needs_no_model_that_runs(trio):
    report = finished(sweep(plan(recipe_of(*trio, method="ties")), "density", [0.2, 1]))
    assert [len(point.scores) for point in report.points] == [0, 0]
    assert verdict(report) == "2 points measured, none scored."


def test_sweeping_back_and_forth_changes_nothing_that_is_kept():
    work = plan(STAR)
    once = finished(sweep(work, "eta", [20, 40]))
    again = finished(sweep(work, "eta", [40, 90, 20, 60]))
    assert once.points == tuple(point for point in again.points if point.value in (20, 40))


@pytest.mark.parametrize("method", ["star", "drm_h", "ties"])
def test_layers_that_do_not_fit_into_memory_are_read_again_and_the_points_are_the_same(method, monkeypatch):
    work, knob = plan(Recipe("numbers/base", TRIO, method)), {"star": "eta", "drm_h": "drop", "ties": "density"}[method]
    values = [20, 40] if method == "star" else [0.2, 0.4]
    with_room = finished(sweep(work, knob, values))
    for room in (0, 300_000):  # none, and some of the layers
        monkeypatch.setattr("mergelab.scores.sweep.KEPT_BYTES", room)
        assert finished(sweep(work, knob, values)).points == with_room.points


def test_each_step_says_how_far_it_is_and_a_finished_point_can_be_shown():
    steps = list(sweep(plan(STAR), "eta", [20, 40]))
    assert [step.done for step in steps] == sorted(step.done for step in steps) and steps[-1].done == steps[
        -1
    ].total == 3
    assert [len(step.made.points) for step in steps if step.made] == [0, 1, 2]


def test_the_number_of_experts_is_swept_with_an_average_for_each(tmp_path):
    report = finished(Lab(tmp_path, device="cpu").sweep(STAR, EXPERTS, [2, 3]))
    assert [len(point.recipe.experts) for point in report.points] == [2, 3]
    assert [len(point.scores) for point in report.points] == [2, 3]
    assert report.baseline(0).value == 2 and report.best is None
    assert verdict(report).startswith("2 experts: STAR ") and "p = " in verdict(report)


@pytest.mark.parametrize(
    ("knob", "values", "said"),
    [
        ("etta", [1], "Did you mean 'eta'"),
        ("rescale", [1], "no knob 'rescale' that can be swept"),
        ("eta", [0, 50], "'eta' must be a number from 1 to 100, not 0"),
        ("eta", [math.nan], "must be a number from 1 to 100, not nan"),
        ("eta", [], "1 to 60 points, and 0 were asked for"),
        ("eta", [1 + i / 2 for i in range(MOST_POINTS + 1)], "61 were asked for"),
        (EXPERTS, [2.5], "must be a whole number from 2 to 3"),
        (EXPERTS, [4], "from 2 to 3, not 4"),
        ("eta", spread(300, 50, 6), "not 300"),
        ("eta", spread(50, 300, 6), "not 300"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_any_work(knob, values, said):
    with pytest.raises(MergeError, match=None) as error:
        checked_values(METHODS["star"], 3, knob, values)
    assert said in str(error.value)


def test_values_on_the_command_line_are_a_range_or_a_list():
    assert values_from("10:100:30") == (10, 40, 70, 100)
    assert values_from("0:1:0.1")[-1] == 1 and len(values_from("0:1:0.1")) == 11
    assert values_from("10,20.5") == (10, 20.5)
    for wrong in ("a", "1:2", "1:2:0", "2:1:1", "1:100000:1", "", "nan:1:1", "1:inf:1"):
        with pytest.raises(MergeError):
            values_from(wrong)


def test_points_are_spread_evenly_on_the_knobs_own_grid():
    assert spread(10, 100, 10, 1) == tuple(range(10, 101, 10))
    assert spread(2, 4, 9, 1) == (2, 3, 4)
    assert spread(0, 1, 3) == (0, 0.5, 1) and spread(5, 5, 4) == (5,)


@pytest.mark.parametrize(
    ("low", "high", "step", "wanted"),
    [(1, 100, 1, (10, 100, 10)), (0, 0.99, 0.01, (0, 0.9, 10)), (0, 3, 0.05, (0, 3, 7)), (2, 8, 1, (2, 8, 7))],
)
def test_a_sensible_range_is_made_of_round_numbers(low, high, step, wanted):
    assert sensible_range(Knob(low, high, "", step)) == wanted


def test_every_numeric_knob_of_the_method_and_the_number_of_experts_can_be_swept():
    work = plan(STAR)
    assert list(knobs_of(work.method, 3)) == ["eta", EXPERTS]
    assert list(knobs_of(work.method, 2)) == ["eta"]
    assert at(work, "eta", 70).recipe.settings["eta"] == 70 and work.recipe.settings["eta"] == 40


def scored_point(value, right, count=100):
    amounts = (1.0,) * right + (0.0,) * (count - right)
    return Point(value, STAR, {}, (TaskScore("t", "exact match", amounts, (1,) * count),))


def test_the_verdict_names_what_may_be_luck():
    points = (scored_point(10, 5), scored_point(20, 68), scored_point(30, 70))
    said = verdict(SweepReport("eta", "STAR", points, (scored_point(None, 40),)))
    assert said.startswith("Best of 3 points on the test prompts: η 30, 70.0% (95 %: ")
    assert "What η 20 scores lies within that interval" in said
    assert "wins 30 and loses 0" in said and "Picked on every second prompt (η 30), it scores 70.0%" in said


def test_a_perplexity_is_best_where_it_is_lowest():
    points = tuple(
        Point(value, STAR, {}, (TaskScore("t", "perplexity", (nats,) * 3, (1,) * 3),))
        for value, nats in ((1, 2.0), (2, 1.0))
    )
    report = SweepReport("eta", "STAR", points)
    assert report.best == 1 and "perplexity 2.72" in verdict(report)


def test_weights_that_add_up_to_nothing_have_no_average_and_that_is_said(trio):
    base, one, two = trio
    recipe = Recipe(str(base), (Expert(str(one), 1.0), Expert(str(two), -1.0)), "task_arithmetic")
    report = finished(sweep(plan(recipe), "lambda", [0.5]))
    assert report.baselines == () and "no average" in report.notes[-1]


def test_where_the_weights_of_the_first_few_cancel_the_other_points_have_their_average():
    weights = (1.0, -1.0, 1.0)
    experts = tuple(Expert(expert.source, weight) for expert, weight in zip(TRIO, weights))
    report = finished(sweep(plan(Recipe("numbers/base", experts, "star")), EXPERTS, [2, 3]))
    assert [point.value for point in report.points] == [2, 3] and [plain.value for plain in report.baselines] == [3]
    assert "The weights of the first 2 experts add up to 0: there is no average to compare with." in report.notes
    assert report.baseline(0) is None and report.table()[1]


@pytest.mark.parametrize("weight", [[1.0, 0.5], [{"filter": "a.", "value": 0.5}, {"value": 1.0}]], ids=str)
def test_weights_that_vary_from_tensor_to_tensor_are_swept_against_their_average(trio, weight):
    base, one, two = trio
    recipe = Recipe(str(base), (Expert(str(one), weight), Expert(str(two), -1.0)), "task_arithmetic")
    report = finished(sweep(plan(recipe), "lambda", [0.5]))
    assert report.baselines == () and "no average" in report.notes[-1]
    recipe = Recipe(str(base), (Expert(str(one), weight), Expert(str(two), 1.0)), "task_arithmetic")
    assert len(finished(sweep(plan(recipe), "lambda", [0.5])).baselines) == 1


def test_where_a_filter_list_says_nothing_the_default_holds_at_every_point_too(trio):
    lists = [[{"filter": "a.", "value": False}], [{"filter": "a.", "value": False}, {"value": True}]]
    short, whole = (plan(recipe_of(*trio, method="ties", settings={"normalize": normalize})) for normalize in lists)
    assert finished(sweep(short, "density", [0.5])).points == finished(sweep(whole, "density", [0.5])).points


def test_an_expert_with_a_value_of_its_own_stays_at_it_and_that_is_said(trio):
    base, one, two = trio
    own = Expert(str(one), 1.0, {"density": 0.5})
    report = finished(sweep(plan(Recipe(str(base), (own, Expert(str(two))), "ties")), "density", [0.2, 1]))
    assert "Expert 'expert-1' has a 'density' of its own, which stays as it is at every point." in report.notes
    both = plan(Recipe(str(base), (own, replace(own, source=str(two))), "ties"))
    with pytest.raises(MergeError, match="Every expert has a 'density' of its own, .* would change nothing"):
        next(sweep(both, "density", [0.2, 1]))
    part = replace(own, source=str(two), settings={"density": [{"filter": "a.", "value": 0.5}]})
    low, high = finished(sweep(plan(Recipe(str(base), (own, part), "ties")), "density", [0.2, 1])).points
    assert low.facts != high.facts


def test_a_knob_that_varies_in_the_recipe_is_one_number_at_each_point_and_that_is_said(trio):
    work = plan(recipe_of(*trio, method="star", settings={"eta": [{"filter": "a.", "value": 90}, {"value": 40}]}))
    report = finished(sweep(work, "eta", [20]))
    assert report.points[0].recipe.settings["eta"] == 20
    assert "The recipe's 'eta' varies from tensor to tensor; at each point all have the one number." in report.notes


def test_a_point_that_does_not_fit_the_number_format_is_told(trio):
    work = plan(recipe_of(*trio, dtype="float16"))
    assert written(work, "b.bias", torch.ones(8)).dtype == torch.float16
    with pytest.raises(MergeError, match="'b.bias' does not fit into F16"):
        written(work, "b.bias", torch.full((8,), 1e6))


def test_a_model_that_writes_no_text_is_refused_before_the_first_point(trio):
    job = sweep(plan(recipe_of(*trio, method="star")), "eta", [50], lambda run, recipe: iter(()))
    with pytest.raises(MergeError, match="cannot be prompted"):
        next(job)


class Renamed(torch.nn.Module):
    """A model whose tensors have a prefix that their file does not have, and the other way round."""

    base_model_prefix = "model"

    def __init__(self):
        super().__init__()
        self.model, self.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)


def test_tensors_are_found_with_and_without_the_prefix_that_transformers_adds():
    model = Renamed()
    places = places_of(model, ["weight", "model.bias", "model.head.weight"])
    assert places["weight"] is model.model.weight and places["model.head.weight"] is model.head.weight
    with pytest.raises(MergeError, match="gives 'experts.gate' another name"):
        places_of(model, ["experts.gate"])
    with pytest.raises(MergeError, match="does not fit into memory"):
        places_of(model.to("meta"), ["weight"])


def test_the_command_prints_a_table_and_a_verdict_and_writes_csv_and_json(tmp_path, capsys):
    recipe, prompts = tmp_path / "recipe.yaml", tmp_path / "mine.txt"
    recipe.write_text(STAR.to_yaml())
    prompts.write_text("english: 21 = => twenty-one\nfrench: 21 = => vingt et un => french\n", encoding="utf-8")
    files = ["--csv", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json")]
    words = ["sweep", str(recipe), "--knob", "eta", "--values", "40,60", "--prompts", str(prompts), *files]
    assert main([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:3] == ["method", "eta", "mean"] and said[-1].startswith("Best of 2 points")
    table = (tmp_path / "t.csv").read_text().splitlines()
    assert len(table) == 1 + 2 + 1 and table[0].startswith("method,eta,mean,95 % from,to,own prompts,french")
    data = json.loads((tmp_path / "t.json").read_text())
    assert [point["value"] for point in data["points"]] == [40, 60]
    assert Recipe.from_dict(data["points"][0]["recipe"]).settings["eta"] == 40


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(STAR.to_yaml())
    assert main(["sweep", str(recipe), "--knob", "eta", "--values", "some"]) == 1
    assert capsys.readouterr().err.startswith("mergelab: Values are written as 10:100:10")


def test_what_a_layer_has_come_to_hold_is_counted_at_every_point(trio, monkeypatch):
    made, begin = [], Layers.__init__
    monkeypatch.setattr(Layers, "__init__", lambda self, device: (begin(self, device), made.append(self))[0])
    finished(sweep(plan(recipe_of(*trio, method="star")), "eta", [20, 60, 100]))
    (layers,) = made
    assert layers.kept and layers.held == sum(map(held_bytes, layers.kept.values()))
    decomposed = next(layer for layer in layers.kept.values() if layer.decompose)
    assert held_bytes(decomposed) >= 4 * decomposed.base.numel() * 3 + sum(
        factors.vectors.nbytes for factors in decomposed.factors()
    )


def test_points_are_asked_with_the_tokenizer_and_the_template_that_the_merge_would_have(tmp_path):
    expert = tmp_path / "expert"
    shutil.copytree(ASSETS / "numbers/french", expert)
    (expert / "chat_template.jinja").write_text("{{ messages[0]['content'] }} !")
    work = plan(Recipe("numbers/base", (Expert(str(expert)), Expert("numbers/sort")), "linear", chat_template="auto"))
    assert work.template and Resident(work).run.tokenizer.chat_template == work.template


def test_a_best_point_is_held_to_be_better_than_the_average_only_for_all_that_were_tried():
    points = (scored_point(20, 68), scored_point(30, 70))
    said = verdict(SweepReport("eta", "STAR", points, (scored_point(None, 58),)))
    assert "p = 0.00098, 2 times that of one, as it is the best of 2" in said  # 2 · 2⁻¹¹
