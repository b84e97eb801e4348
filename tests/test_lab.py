"""What the lab remembers, and what it leaves behind, on the bundled experts."""

import hashlib
import shutil
from dataclasses import replace

import pytest
import torch
from making import finished
from safetensors.torch import load_file

from mergelab import Expert, MergeError, Recipe
from mergelab.assets import bundled
from mergelab.lab.kept import Kept
from mergelab.lab.lab import START, Lab, analysis_key, start_analysis
from mergelab.lab.own import own_tasks
from mergelab.lab.saved import zipped
from mergelab.scores.questions import Questions

PAIR = Recipe("numbers/base", (Expert("numbers/french"), Expert("numbers/german-lora")), "star", {"eta": 50.0})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("runs"), device="cpu")


@pytest.fixture(scope="module")
def run(lab):
    return finished(lab.merge(PAIR))


def test_the_shipped_analysis_is_what_is_measured_now():
    lab = Lab(device="cpu")
    shipped = start_analysis(lab)
    lab.analyses.clear()
    measured = finished(lab.analyse(Recipe.read(START)))
    assert shipped.recipe == measured.recipe and shipped.experts == measured.experts
    for then, now in zip(shipped.layers, measured.layers, strict=True):
        assert (then.name, then.shape, then.decomposed) == (now.name, now.shape, now.decomposed)
        assert then.facts.get("rank kept") == now.facts.get("rank kept")
        for old, new in zip(then.curves.get("singular_values", ()), now.curves.get("singular_values", ()), strict=True):
            assert old == pytest.approx(new, rel=1e-3)


def test_the_page_opens_without_computing_because_the_shipped_analysis_is_found_by_its_recipe():
    lab = Lab(device="cpu")
    shipped = start_analysis(lab)
    steps = list(lab.analyse(Recipe.from_dict(shipped.recipe)))
    assert steps == []


def test_an_analysis_is_computed_once(lab):
    first = finished(lab.analyse(PAIR))
    job = lab.analyse(PAIR)
    with pytest.raises(StopIteration) as end:
        next(job)
    assert end.value.value is first


@pytest.fixture
def own(tmp_path):
    """A folder of one's own, at first with the French expert in it."""
    return shutil.copytree(bundled()["numbers/french"], tmp_path / "own")


def becomes_german(folder):
    shutil.copyfile(bundled()["numbers/german"] / "model.safetensors", folder / "model.safetensors")


def test_an_expert_whose_folder_has_changed_is_analysed_and_merged_anew(lab, own):
    recipe = replace(PAIR, experts=(Expert(str(own)), Expert("numbers/english")))
    before, first = finished(lab.analyse(recipe)), finished(lab.merged(recipe))
    assert finished(lab.analyse(recipe)) is before and finished(lab.merged(recipe)) is first
    becomes_german(own)
    after, second = finished(lab.analyse(recipe)), finished(lab.merged(recipe))
    german = replace(recipe, experts=(Expert("numbers/german"), Expert("numbers/english")))
    assert [layer.facts for layer in after.layers] == [layer.facts for layer in finished(lab.analyse(german)).layers]
    assert second.sha256 == finished(lab.merged(german)).sha256 != first.sha256
    assert lab.run_of(first.recipe) is second and finished(lab.merged(recipe)) is second
    with pytest.raises(MergeError, match="has changed since, so it cannot be measured any more"):
        next(lab.whole_report(first))


def test_what_the_page_shows_of_an_analysis_is_found_under_the_key_of_its_report(lab, own):
    by_layer = {"eta": [{"filter": "mlp", "value": 30.0}]}  # elsewhere the default, which the report fills in
    for recipe in (PAIR, replace(PAIR, experts=(Expert(str(own)),)), replace(PAIR, settings=by_layer)):
        report = finished(lab.analyse(recipe))
        assert lab.analyses[analysis_key(Recipe.from_dict(report.recipe))] is report


def test_an_expert_whose_folder_has_changed_is_asked_and_scored_anew(lab, own):
    recipe = replace(PAIR, experts=(Expert(str(own)),))
    asked = [Questions("german", (("german: 424 =", "vierhundertvierundzwanzig"),))]

    def answer_and_score():
        (texts,) = list(lab.answers([lab.model_folder(str(own), "numbers/base")], "german: 424 ="))[-1:]
        return texts, finished(lab.scoreboard(recipe, {}, asked)).scores["own", "german"].value

    assert answer_and_score()[1] == 0
    becomes_german(own)
    assert answer_and_score() == (["vierhundertvierundzwanzig"], 1)


def test_an_adapter_whose_folder_has_changed_is_written_out_anew(lab, tmp_path):
    own = shutil.copytree(bundled()["numbers/german-lora"], tmp_path / "own")
    first = lab.model_folder(str(own), "numbers/base")
    assert lab.model_folder(str(own), "numbers/base") == first
    shutil.copyfile(bundled()["numbers/french-lora"] / "adapter_model.safetensors", own / "adapter_model.safetensors")
    second, wanted = (lab.model_folder(source, "numbers/base") for source in (str(own), "numbers/french-lora"))
    weights = [load_file(folder / "model.safetensors") for folder in (second, wanted)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_a_folder_named_like_a_bundled_model_is_not_taken_for_it(lab, tmp_path, monkeypatch):
    start = Recipe.read(START)
    shutil.copytree(bundled()["numbers/english"], tmp_path / start.experts[0].source)
    shipped = finished(lab.analyse(start))
    monkeypatch.chdir(tmp_path)
    assert finished(lab.analyse(start)).layers != shipped.layers


def test_the_hash_that_is_shown_is_that_of_the_file_that_is_prompted_and_downloaded(lab, run):
    data = (run.folder / "model.safetensors").read_bytes()
    assert run.sha256 == hashlib.sha256(data).hexdigest()
    in_memory = lab._running(run.folder).model.state_dict()
    for name, tensor in load_file(run.folder / "model.safetensors").items():
        assert torch.equal(in_memory[name], tensor.float())


def test_a_merge_that_is_stopped_leaves_nothing(tmp_path):
    lab = Lab(tmp_path, device="cpu")
    job = lab.merge(PAIR)
    assert next(job).done == 1
    job.close()
    assert not lab.runs and list(tmp_path.iterdir()) == []


def test_an_adapter_is_prompted_as_the_model_that_it_stands_for(lab):
    folder = lab.model_folder("numbers/german-lora", "numbers/base")
    assert folder != lab.model_folder("numbers/base", "numbers/base")
    (texts,) = list(lab.answers([folder], "german: 424 ="))[-1:]
    assert texts == ["vierhundertvierundzwanzig"]


def test_answers_come_from_one_model_after_another_and_grow(lab, run):
    base = lab.model_folder("numbers/base", "numbers/base")
    seen = list(lab.answers([base, run.folder], "french: 21 ="))
    assert seen[0][1] == "" and seen[-1][1] == "vingt et un"
    for before, after in zip(seen, seen[1:]):
        assert all(new.startswith(old) for old, new in zip(before, after))


def test_the_same_seed_gives_the_same_sampled_answer(lab, run):
    def ask(seed):
        return list(lab.answers([run.folder], "french: 8 = ?", temperature=1.5, seed=seed, tokens=12))[-1]

    assert ask(1) == ask(1)
    assert len({tuple(ask(seed)) for seed in range(6)}) > 1


def test_an_answer_that_is_abandoned_stops_its_model(lab, run):
    import threading

    asked = lab.answers([run.folder], "french: 21 =", tokens=60)
    next(asked)
    asked.close()
    assert not [thread for thread in threading.enumerate() if "generate" in thread.name]


def test_scores_are_of_the_tasks_that_the_experts_were_trained_for(lab, run):
    scores = finished(lab.scores(run)).by_task()
    assert list(scores) == ["french", "german"]
    for score in scores.values():
        assert score["expert"] >= 0.9 > score["base"] and score["base"] < score["merged"] <= 1


def test_experts_from_elsewhere_have_no_tasks():
    assert own_tasks(replace(PAIR, base="somewhere/else")) == []


def test_the_zip_holds_the_files_of_the_folder_bit_for_bit(run):
    from zipfile import ZipFile

    with ZipFile(zipped(run.folder)) as archive:
        names = {name.split("/")[-1] for name in archive.namelist()}
        assert names == {path.name for path in run.folder.iterdir()}
        weights = archive.read(f"{run.folder.name}/model.safetensors")
    assert weights == (run.folder / "model.safetensors").read_bytes()


def test_what_is_unused_for_longest_is_dropped_first_and_its_folder_goes():
    gone = []
    kept = Kept(2, gone=gone.append)
    for key in "ab":
        kept.get_or_make(key, lambda key=key: key.upper())
    kept.get_or_make("a", lambda: "never made")
    kept.keep("c", "C")
    assert list(kept) == ["a", "c"] and gone == ["B"]


def test_a_run_that_is_gone_is_said_to_be_gone(lab):
    with pytest.raises(MergeError, match="Press Merge again"):
        lab.run_named("not-kept")


def test_a_prompt_that_cannot_be_asked_is_refused_by_a_sentence(lab, run):
    with pytest.raises(MergeError, match="room for 128"):
        list(lab.answers([run.folder], "7 " * 300))


def test_a_folder_that_writes_no_text_is_refused_by_a_sentence(lab, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(MergeError, match="cannot be prompted"):
        list(lab.answers([tmp_path], "hello"))
