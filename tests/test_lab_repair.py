"""The story of two unrelated networks, seeded and whole: at chance, aligned, repaired; and what may go wrong in it."""

import shutil
from dataclasses import replace
from statistics import fmean
from zipfile import ZipFile

import pytest
from making import finished, merged

from mergelab import Expert, MergeError, Recipe
from mergelab.assets import bundled
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab, lines_in, story
from mergelab.model import running
from mergelab.repair import Patch
from mergelab.repair.outcome import Outcome, Trial
from mergelab.repair.stories import STORIES
from mergelab.step import Step
from mergelab.tasks import own_pictures, right_labels

TWO, ALIGN = STORIES["Digits: two unrelated nets"]
NUMBERS = Recipe("numbers/base", (Expert("numbers/english"), Expert("numbers/morse")), "linear")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return RepairLab(Lab(tmp_path_factory.mktemp("runs"), device="cpu"))


@pytest.fixture(scope="module")
def tact(lab):
    return finished(lab.tell(Trial(TWO, without=True), ALIGN))


@pytest.fixture(scope="module")
def mean(lab):
    return finished(lab.tell(Trial(TWO, target="mean"), ALIGN))


def score(told, kind):
    return fmean(report.scores[kind] for report in told.outcome.reports)


def test_a_plain_average_of_unrelated_networks_is_at_chance_and_alignment_lifts_it(tact):
    assert all(report.scores["plain average"] <= 0.2 for report in tact.outcome.reports)
    assert score(tact, "merged") >= score(tact, "plain average") + 0.1


def test_alignment_and_repair_together_recover_most_of_what_the_experts_know(tact):
    assert score(tact, "repaired") >= 0.75 >= score(tact, "merged") + 0.25
    assert score(tact, "expert") >= 0.95


def test_tact_is_at_least_repair_and_repair_at_least_the_merge(tact, mean):
    assert score(tact, "repaired") >= score(mean, "repaired") >= score(mean, "merged")


def test_repair_without_alignment_is_clearly_worse_than_with_it(tact):
    assert score(tact, "plain average, repaired") <= score(tact, "repaired") - 0.2


def test_variance_collapses_with_depth_alignment_saves_some_and_repair_brings_it_back(tact):
    for report in tact.outcome.reports:
        plain = [one.ratio() for one in tact.outcome.plain[report.task]]
        aligned = [one.ratio() for one in report.channels]
        assert plain[0] > 3 * min(plain) and min(plain) <= 0.1
        assert all(more > less for more, less in zip(aligned, plain))
        assert all(one.ratio("repaired") == pytest.approx(1, abs=1e-3) for one in report.channels)


def test_the_theory_line_is_that_of_the_measured_correlation(tact, lab):
    assert fmean(tact.outcome.matching.after) > fmean(tact.outcome.matching.before) + 0.1
    assert all(0.5 <= share <= 1 for share in tact.outcome.theory)
    assert abs(fmean(tact.outcome.matching.before)) < 0.1


def test_the_controls_stand_beside_the_scores(tact):
    first, second = (report.scores for report in tact.outcome.reports)
    assert "base" not in first  # there, the base is the expert
    assert {"base", "base, repaired", "without the expert", "without the expert, repaired"} <= second.keys()
    assert second["base, repaired"] <= second["repaired"] - 0.2


def test_the_self_test_and_the_fold_are_exact_and_reported(tact):
    assert 0 < tact.outcome.matching.error < 1e-5
    assert all(report.difference < 1e-4 and report.unfolded == () for report in tact.outcome.reports)


def test_a_folded_checkpoint_is_an_ordinary_model_that_scores_as_the_repaired_one(tact, lab, tmp_path):
    paths = finished(lab.written(tact.key, sidecar=False))
    for path, report in zip(paths, tact.outcome.reports, strict=True):
        ZipFile(path).extractall(tmp_path)
        model = running(tmp_path / path.stem).model
        right = right_labels(model, own_pictures(f"digits/{report.task}").test)
        assert float(right.float().mean()) == pytest.approx(report.scores["repaired"], abs=0.01)
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert finished(lab.written(tact.key, sidecar=False)) == paths  # not written twice, and nothing lies beside them
    assert [path.stat().st_mtime_ns for path in paths] == stamps and sorted(paths[0].parent.iterdir()) == sorted(paths)
    assert not list(tact.home.glob("plain")) + list(tact.home.glob("without-*"))


def test_a_number_of_samples_that_is_none_is_refused(lab):
    for samples in (-5, 3, 513):
        with pytest.raises(MergeError, match="calibration samples"):
            finished(lab.tell(Trial(NUMBERS, samples=samples), "none"))


def test_a_recipe_that_aligns_is_aligned_whatever_the_tab_says(lab):
    told = finished(lab.tell(Trial(replace(TWO, align="weights"), samples=8), "none"))
    assert told.outcome.trial["align"] == "weights" and told.outcome.matching.after and told.outcome.plain


def test_the_recipe_that_goes_with_an_aligned_merge_makes_it_again(tact, tmp_path):
    recipe = Recipe.read(tact.run.folder / "recipe.yaml")
    assert recipe.align == "activations" and all(e.source.startswith("digits/") for e in recipe.experts)
    assert merged(recipe, tmp_path / "again").sha256 == tact.run.report.sha256


def test_the_sidecars_are_small_beside_their_one_body(tact, lab, tmp_path):
    (path,) = finished(lab.written(tact.key, sidecar=True))
    ZipFile(path).extractall(tmp_path)
    for report in tact.outcome.reports:
        file = tmp_path / path.stem / f"repair-{report.task}.safetensors"
        assert Patch.load(file).task == report.task
        assert file.stat().st_size < (tmp_path / path.stem / "model.safetensors").stat().st_size / 10


def test_the_shipped_story_is_what_is_measured_now(mean, tact):
    for then, now in zip(story().reports, tact.outcome.reports, strict=True):
        assert then.task == now.task
        for kind, share in then.scores.items():
            assert share == pytest.approx(now.scores[kind], abs=0.05)
        assert [one.ratio() for one in then.channels] == pytest.approx([one.ratio() for one in now.channels], rel=0.02)


def test_an_outcome_travels_as_json_and_its_tables_have_a_row_per_task_and_site(tact):
    again = Outcome.from_json(tact.outcome.to_json())
    assert again.table() == tact.outcome.table() and again.score_table() == tact.outcome.score_table()
    assert len(again.table()[1]) == 2 * 7 and again.theory == tact.outcome.theory


def test_progress_never_goes_back_and_ends_where_it_said(lab):
    steps = [news for news in lab.tell(Trial(TWO, samples=8), "weights") if isinstance(news, Step)]
    done = [step.done for step in steps]
    assert done == sorted(done) and done[-1] == steps[-1].total
    assert any("plain average: " in step.name for step in steps)


@pytest.mark.parametrize("steps", [1, 8, 60])
def test_a_run_that_is_stopped_leaves_nothing(tmp_path, steps):
    lab = RepairLab(Lab(tmp_path, device="cpu"))
    job = lab.tell(Trial(TWO, samples=8), "weights")
    for _ in range(steps):
        next(job)
    job.close()
    assert not lab.told and not list(tmp_path.glob("aligned-*")) and not list(tmp_path.rglob("*.partial"))


def test_unrelated_experts_that_are_not_aligned_are_said_to_be_so(lab):
    told = finished(lab.tell(Trial(TWO, samples=8), "none"))
    assert any("align" in note for note in told.outcome.notes)
    assert not told.outcome.plain and not told.outcome.matching.after


def test_prompts_of_ones_own_are_answered_by_each_expert_and_too_few_are_refused(lab):
    text = "\n".join(f"english: {n} =" for n in (12, 345, 678, 9012))
    told = finished(lab.tell(Trial(NUMBERS, lines=lines_in(text)), "none"))
    assert [report.samples for report in told.outcome.reports] == [4, 4]
    with pytest.raises(MergeError, match="at least 4"):
        finished(lab.tell(Trial(NUMBERS, lines=lines_in("english: 12 =\n\n")), "none"))


def test_experts_without_data_of_their_own_are_refused_by_a_sentence(lab, tmp_path):
    elsewhere = replace(NUMBERS, experts=(Expert(str(lab.lab.model_folder("numbers/english", "numbers/base"))),) * 2)
    with pytest.raises(MergeError, match="Paste at least 4"):
        finished(lab.tell(Trial(elsewhere), "none"))


@pytest.mark.parametrize(
    ("change", "align", "match"),
    [({}, "wieghts", "alignment"), ({"sites": "foldible"}, "none", "sites"), ({"mode": "afine"}, "none", "mode")],
)
def test_what_does_not_exist_is_named(lab, change, align, match):
    with pytest.raises(MergeError, match=match):
        finished(lab.tell(replace(Trial(TWO, samples=8), **change), align))


def test_a_run_that_is_gone_is_said_to_be_gone_and_the_example_cannot_be_taken_home(lab):
    with pytest.raises(MergeError, match="Press Run again"):
        finished(lab.written("not-kept", sidecar=True))
    with pytest.raises(MergeError, match="made in advance"):
        finished(lab.written("", sidecar=True))


def test_a_kept_merge_is_repaired_for_a_prompt_and_for_a_score_without_being_changed(lab):
    run = finished(lab.lab.merge(NUMBERS))
    before = list(lab.lab.answers([run.folder], "morse: 4031 ="))[-1]
    patch = lab.patch(run, "numbers/morse")
    assert list(lab.repaired_answer(run, patch, "morse: 4031 ="))[-1] == "....- ----- ...-- .----"
    assert list(lab.lab.answers([run.folder], "morse: 4031 ="))[-1] == before
    plain = finished(lab.lab.scores(run)).of("merged")
    found = list(lab.repaired_scores(run))
    assert [score.task for score in found] == [score.task for score in plain]
    assert all(score.value >= before.value for score, before in zip(found, plain))
    assert lab.patch(run, "numbers/morse") is patch


def test_an_expert_whose_folder_has_changed_is_repaired_for_anew(lab, tmp_path):
    own = shutil.copytree(bundled()["numbers/morse"], tmp_path / "own")
    run, lines = finished(lab.lab.merged(NUMBERS)), tuple((f"morse: {4000 + i} =", None) for i in range(8))
    first = lab.patch(run, str(own), lines)
    assert lab.patch(run, str(own), lines) is first
    shutil.copyfile(bundled()["numbers/english"] / "model.safetensors", own / "model.safetensors")
    assert lab.patch(run, str(own), lines) is not first


def test_two_unrelated_llamas_stay_hard_though_their_variance_comes_back(lab):
    recipe, align = STORIES["Numbers: two unrelated Llamas"]
    told = finished(lab.tell(Trial(recipe), align))
    for report in told.outcome.reports:
        assert min(one.ratio() for one in told.outcome.plain[report.task]) <= 0.05
        assert all(one.ratio("repaired") == pytest.approx(1, abs=1e-2) for one in report.channels)
        assert report.scores["plain average"] <= 0.02 and report.scores["repaired"] <= 0.5 < report.scores["expert"]
