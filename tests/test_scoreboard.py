"""The scoreboard, the suggestion of η, and the comparison of two merges."""

import json
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
from making import finished, noise, recipe_of, write_model

from mergelab import Expert, MergeError, Recipe, inspect, plan
from mergelab.files.checkpoint import Checkpoint
from mergelab.lab.lab import START, Lab, by_method
from mergelab.lab.own import own_questions
from mergelab.lab.saved import saved_table
from mergelab.lab.shipped import start_board, start_comparison, start_pair, start_sweep
from mergelab.maths.suggestion import restored
from mergelab.method import METHODS
from mergelab.model import running
from mergelab.plots import compare as plots_compare
from mergelab.plots import scores as plots_scores
from mergelab.scores.compare import compared
from mergelab.scores.questions import Questions
from mergelab.scores.scoreboard import Board
from mergelab.scores.scoring import TaskScore
from mergelab.scores.suggest import suggested_eta
from mergelab.scores.sweep_report import Point, SweepReport
from mergelab.scores.verdict import board_verdict

PAIR = Recipe("numbers/base", (Expert("numbers/english"), Expert("numbers/german-lora")), "star", {"eta": 60.0})
OWN = [Questions("mine", (("english: 21 =", "twenty-one"), ("english: 40 =", "forty")))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("runs"), device="cpu")


@pytest.fixture(scope="module")
def run(lab):
    return finished(lab.merge(PAIR))


def checked(figure):
    """The figure, after plotly itself has validated every key; every one has an alternative text."""
    assert figure["layout"]["meta"]["alt"]
    return go.Figure({"data": figure["data"], "layout": {k: v for k, v in figure["layout"].items() if k != "meta"}})


def test_a_board_has_base_experts_and_merge_and_nothing_is_scored_twice(lab, run):
    board = finished(lab.scoreboard(PAIR, {"merged": run.folder}))
    assert finished(lab.scores(run)) == board
    assert board.by_task()["german"] == {
        who: board.scores[model, "german"].value
        for who, model in (("base", "base"), ("expert", "german-lora"), ("merged", "merged"))
    }
    assert board.master("german") == "german-lora" and ("english", "german") not in board.scores
    assert 0 < board.normalised("base") < board.normalised("merged") < 1.1
    again = list(lab.scoreboard(PAIR, {"merged": run.folder}))
    assert sum(bool(step.made) for step in again) == len(again) / 2, "what is known is not computed again"


def test_own_prompts_are_scored_by_every_model_and_a_running_one_can_join(lab, run):
    board = finished(lab.scoreboard(PAIR, {"merged": run.folder, "by hand": running(run.folder)}, OWN))
    assert board.models == ("base", "english", "german-lora", "merged", "by hand")
    assert len(board.scores) == 5 and board.scores["merged", "mine"] == board.scores["by hand", "mine"]
    assert board.scores["english", "mine"].value == 1


def test_experts_without_tasks_need_prompts_of_the_user(lab, trio):
    with pytest.raises(MergeError, match="no bundled tasks. Give prompts of your own"):
        finished(lab.scoreboard(recipe_of(*trio), {}))


def test_a_table_can_be_taken_home_as_csv(lab):
    path = saved_table(lab, "scores", ["a", "b"], [["x, y", 0.1]])
    assert Path(path).read_bytes() == b'a,b\r\n"x, y",0.1\r\n'


def score(task, right, of=20):
    return TaskScore(task, "exact match", (1.0,) * right + (0.0,) * (of - right), (1,) * of)


def test_bars_have_the_intervals_and_grow_as_scores_come_in():
    scores = {("base", "t"): score("t", 5), ("base", "u"): score("u", 6), ("t", "t"): score("t", 20)}
    board = Board(("base", "t", "u", "merged"), ("t", "u"), scores)
    names = [trace.name for trace in checked(plots_scores.board_bars(board)).data]
    assert names == ["base", "its own expert", "merged"]
    whole = Board(board.models, board.experts, scores | {("u", "u"): score("u", 19), ("merged", "t"): score("t", 10)})
    bars = {trace.name: trace for trace in checked(plots_scores.board_bars(whole)).data}
    assert bars["merged"].y == (0.5, None, None)
    low, high = scores["base", "t"].interval
    assert bars["base"].error_y.array[0] == pytest.approx(high - 0.25, abs=1e-4)
    assert bars["base"].error_y.arrayminus[0] == pytest.approx(0.25 - low, abs=1e-4)
    assert bars["its own expert"].y[2] == pytest.approx((1 + 19 / 20) / 2)


def test_a_sweep_is_drawn_with_every_point_to_be_clicked_and_the_best_marked():
    facts = {"merged change": 0.1, "cosine to the average": 1.0}
    points = tuple(Point(value, PAIR, facts, (score("t", n), score("u", n))) for value, n in ((10, 3), (20, 15)))
    average = Point(None, PAIR, facts | {"merged change": 0.05}, (score("t", 9), score("u", 9)))
    figure = checked(plots_scores.sweep_curves(SweepReport("eta", "STAR", points, (average,))))
    traces = {trace.name: trace for trace in figure.data}
    assert traces["mean"].customdata == ("0", "1") and traces["mean"].y == (0.15, 0.75)
    assert traces["best on these prompts"].x == (20,) and traces["best on these prompts"].customdata == ("1",)
    assert traces["the average"].x == (10, 20) and traces["the average"].y == (0.45, 0.45)
    assert traces["size, relative to the average's"].y == (2, 2)
    assert "NaN" not in json.dumps(figure.to_plotly_json())


def test_a_sweep_without_scores_is_drawn_as_geometry_alone():
    points = (Point(1, PAIR, {"merged change": 0.1, "cosine to the average": 0.5}),)
    assert checked(plots_scores.sweep_curves(SweepReport("density", "TIES", points))).data
    assert checked(plots_scores.sweep_curves(SweepReport("density", "TIES", ()))).data == ()


def test_the_suggestion_knows_its_extremes_and_does_not_see_the_scale():
    spectrum = torch.linspace(3, 0.1, 10, dtype=torch.float64) ** 2
    assert 0 < restored(spectrum, 4) < restored(spectrum, 2) < 1
    assert restored(spectrum * 7, 4) == pytest.approx(restored(spectrum, 4))
    assert restored(torch.ones(10), 2) == pytest.approx(0.5)  # keeping r of 10 scales the norm by √(10/r), √2 at 5
    assert restored(torch.tensor([100.0] + [0.01] * 9), 4) > 0.99 and restored(torch.zeros(0), 2) == 0


def test_the_rule_in_use_gives_the_merge_of_unrelated_experts_the_size_of_one_change():
    spectrum = torch.linspace(3, 0.01, 200, dtype=torch.float64)
    for experts in (2, 3, 4):
        share = restored(spectrum, experts=experts)
        rank = int((spectrum.cumsum(0) / spectrum.sum() < share - 1e-9).sum()) + 1
        size = spectrum[:rank].norm() * spectrum.sum() / spectrum[:rank].sum() / experts**0.5
        assert float(size / spectrum.norm()) == pytest.approx(1, rel=0.02)
    assert restored(spectrum, experts=1) == pytest.approx(1)


def test_the_suggestion_does_not_see_an_expert_that_changes_nothing(trio):
    base, one, two = trio
    report = finished(inspect(plan(recipe_of(base, one, two, method="star"))))
    idle = finished(inspect(plan(recipe_of(base, one, two, base, method="star"))))
    assert suggested_eta(report) == suggested_eta(idle) and 1 <= suggested_eta(report) <= 100
    assert suggested_eta(finished(inspect(plan(recipe_of(base, base, base))))) is None


NAMES = ["layers.0.a.weight", "head.weight"]


def models(folder, **changes):
    """Checkpoints: a base of two matrices, and the base plus each of the changes."""
    base = {"layers.0.a.weight": noise(4, 6).float(), "head.weight": noise(3, 4, seed=1).float()}
    found = [Checkpoint(write_model(folder / "base", base), "base")]
    for name, change in changes.items():
        moved = {key: tensor + change * noise(*tensor.shape, seed=2).float() for key, tensor in base.items()}
        found.append(Checkpoint(write_model(folder / name, moved), name))
    return found


def test_distance_and_cosine_are_those_of_the_changes(tmp_path):
    comparison = finished(compared(*models(tmp_path, one=0.1, other=-0.1), NAMES, NAMES[:1]))
    assert comparison.whole.distance == pytest.approx(2, rel=1e-4)
    assert comparison.whole.cosine == pytest.approx(-1, abs=1e-4)
    (mine, theirs), *_ = comparison.spectra.values()
    assert mine == pytest.approx(theirs, rel=1e-3) and list(comparison.spectra) == NAMES[:1]
    assert [layer.place for layer in comparison.layers] == [("layers.*.a.weight", "0"), ("head.weight", "")]


def test_a_merge_does_not_differ_from_itself_and_nothing_from_nothing(tmp_path):
    base, one, still = models(tmp_path, one=0.1, still=0.0)
    same = finished(compared(base, one, one, NAMES)).whole
    assert same.distance == 0 and same.cosine == pytest.approx(1)
    nothing = finished(compared(base, still, still, NAMES)).whole
    assert (nothing.distance, nothing.cosine) == (0.0, 1.0)
    assert finished(compared(base, one, still, NAMES)).whole.distance == pytest.approx(2)


def test_other_shapes_are_refused(tmp_path):
    base, one = models(tmp_path, one=0.1)
    odd = Checkpoint(write_model(tmp_path / "odd", {"head.weight": noise(5, 4).float()}), "odd")
    with pytest.raises(MergeError, match="Only merges of one base"):
        finished(compared(base, odd, odd, NAMES[1:]))
    with pytest.raises(MergeError, match="has no tensor 'layers.0.a.weight'"):
        finished(compared(base, one, odd, NAMES))


def test_two_runs_of_the_lab_are_compared_once_and_drawn(lab, run):
    other = finished(lab.merge(Recipe(PAIR.base, PAIR.experts, "linear")))
    comparison = finished(lab.compare(run, other))
    assert list(lab.compare(run, other)) == []
    assert set(comparison.spectra) == {layer.name for layer in run.report.decomposed}
    for measure in (*plots_compare.MEASURES, "no such measure"):
        figure = checked(plots_compare.difference_map(comparison, measure))
        assert len(figure.data[0].y) == 7 and len(figure.data[0].x) == 4
    assert len(checked(plots_compare.two_spectra(comparison, next(iter(comparison.spectra)))).data) == 4
    assert checked(plots_compare.two_spectra(comparison, "model.norm.weight")).data == ()
    assert len(comparison.table()[1]) == len(run.report.layers) + 1


def test_the_questions_of_a_recipe_are_those_of_its_experts():
    assert [questions.task for questions in own_questions(PAIR)] == ["english", "german"]


def test_the_grid_marks_the_best_merge_of_each_task_and_only_where_there_is_a_choice():
    scores = {("base", "t"): score("t", 5), ("e", "t"): score("t", 20), ("A", "t"): score("t", 12)}
    alone = checked(plots_scores.board_grid(Board(("base", "e", "A"), ("e",), scores))).data[0]
    assert alone.y == ("base", "e", "A") and alone.text[2] == ["60.0%"]
    two = Board(("base", "e", "A", "B"), ("e",), scores | {("B", "t"): score("t", 15)})
    assert [row[0] for row in checked(plots_scores.board_grid(two)).data[0].text] == [
        "25.0%",
        "100.0%",
        "60.0%",
        "75.0% ★",
    ]
    assert two.winner("t") == "B" and two.ranked() == ["B", "A"]


def test_the_verdict_names_the_winners_and_says_when_the_lead_may_be_luck():
    scores = {("e", "t"): score("t", 20), ("A", "t"): score("t", 12), ("B", "t"): score("t", 13)}
    said = board_verdict(Board(("e", "A", "B"), ("e",), scores))
    assert "Best by task: t **B** 65.0%." in said
    assert "wins 1 and loses 0 (sign test: p = 1, this may be luck)" in said
    assert "A 60.0%, B 65.0%" in said


def test_boards_and_sweeps_come_back_from_json_as_they_were():
    for found in (start_board(), start_sweep(), start_comparison()):
        assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_the_tabs_open_with_is_what_is_computed_now(lab):
    """The scores of the form's recipe, one point of the sweep, and a comparison; `make assets` makes them again.

    Another machine's arithmetic may tip an answer in a hundred, where two tokens are as good as equal.
    """

    def close(one, other):
        return sum(a != b for a, b in zip(one.amounts, other.amounts, strict=True)) <= 2

    start, shipped = Recipe.read(START), start_board()
    runs = [finished(lab.merged(recipe)) for recipe in (start, by_method(start, "linear"))]
    board = finished(lab.scoreboard(start, {"STAR": runs[0].folder}))
    assert all(close(board.scores[pair], shipped.scores[pair]) for pair in board.scores)
    point = finished(lab.sweep(start, "eta", [70.0])).points[0]
    kept = next(p for p in start_sweep().points if p.value == 70)
    assert all(close(*pair) for pair in zip(point.scores, kept.scores, strict=True))
    made, example = finished(lab.compare(*runs)), start_comparison()
    assert list(made.spectra) == list(example.spectra)
    for mine, theirs in zip(made.layers, example.layers, strict=True):
        assert (mine.name, mine.shape) == (theirs.name, theirs.shape)
        assert (mine.distance, mine.cosine) == pytest.approx((theirs.distance, theirs.cosine), abs=1e-3)


def test_the_two_that_compare_opens_with_have_the_scores_of_the_board():
    board, pair = start_board(), start_pair()
    assert pair.merges == ("A", "B")
    for side, method in (("A", "star"), ("B", "linear")):
        assert pair.of(side) == board.of(METHODS[method].title)
    assert pair.experts == board.experts
    assert pair.of(board.experts[0]) == board.of(board.experts[0])
