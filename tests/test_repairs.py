"""From a merged folder to repaired ones: data, controls, what is written, and what can be wrong with what is asked."""

import json
import shutil

import families
import pytest
import torch
import transformers
from making import finished, merged, recipe_of
from safetensors.torch import load_file, save_file

from mergelab import Expert, Recipe
from mergelab.__main__ import main
from mergelab.assets import ASSETS
from mergelab.errors import MergeError
from mergelab.model import Running, running
from mergelab.repair import applied, fit, joined, sites, statistics
from mergelab.repair.calibration import batches_of, check_vocabulary, greedy, read_samples
from mergelab.repair.control import check_coordinates, own_channels
from mergelab.repair.job import repair_table, repairs, worn
from mergelab.repair.order import Order, Wanted
from mergelab.report import RepairReport
from mergelab.tasks import exact_match, tasks

NAMES = ("german", "english", "morse", "reverse")
EIGHT = tuple(Expert(f"numbers/{name}") for name in tasks())
RECIPE = Recipe("numbers/base", EIGHT, "linear")


@pytest.fixture(scope="module")
def average(tmp_path_factory):
    """The average of all eight bundled experts, as a folder."""
    folder = tmp_path_factory.mktemp("merged") / "average"
    merged(RECIPE, folder)
    return folder


@pytest.fixture(scope="module")
def done(average, tmp_path_factory):
    """Four tasks of it repaired: the folder and the reports."""
    out = tmp_path_factory.mktemp("out") / "repaired"
    wanted = tuple(Wanted(name, f"numbers/{name}") for name in NAMES)
    return out, finished(repairs(Order(average, wanted, RECIPE), out))


def mean(reports, who):
    return sum(report.scores[who] for report in reports) / len(reports)


def test_the_average_of_eight_gains_and_the_unmerged_base_with_the_same_repair_stays_below(done):
    _, reports = done
    assert mean(reports, "repaired") >= mean(reports, "merged") + 0.06
    assert mean(reports, "base, repaired") <= mean(reports, "repaired") - 0.03
    assert mean(reports, "base") < mean(reports, "base, repaired")


def test_prompts_without_answers_give_less(done, average):
    body, shares = running(average), []
    where = sites(body.model)
    for name in NAMES:
        expert = running(ASSETS / "numbers" / name)
        prompts = [prompt for prompt, _ in tasks()[name].calibration[:32]]
        given = expert.tokenizer(prompts, padding=True, return_tensors="pt")
        given = [{key: given[key] for key in ("input_ids", "attention_mask")}]
        goals = statistics(expert.model, given, where)
        with applied(body.model, fit(body.model, goals, given, where)):
            right = exact_match(body.model, body.tokenizer, tasks()[name].test)
        shares.append(float(right.float().mean()))
    assert sum(shares) / len(shares) <= mean(done[1], "repaired") - 0.01


def test_each_folder_is_an_ordinary_model_that_scores_what_its_report_says(done):
    out, reports = done
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    report = RepairReport.from_json((out / "german/repair.json").read_text(encoding="utf-8"))
    assert report == reports[0] and report.difference < 1e-3 and report.unfolded == ()
    assert report.ratios[1] == pytest.approx(1, abs=1e-3) and len(report.channels) == 44
    assert next(iter(load_file(out / "german/model.safetensors").values())).dtype == torch.float16
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "german", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "german")
    share = float(exact_match(model, tokenizer, tasks()["german"].test).float().mean())
    assert share == pytest.approx(report.scores["repaired"], abs=0.02)
    card = (out / "german/README.md").read_text(encoding="utf-8")
    assert "repaired for german" in card and "base, repaired" in card and "q_proj|out" in card


def test_the_table_has_a_row_per_task_and_a_column_per_score(done):
    header, *rows = repair_table(done[1])
    assert header[-2:] == ["base", "base, repaired"] and [row[0] for row in rows] == list(NAMES)


def test_a_body_with_sidecars_is_worn_task_by_task(average, tmp_path):
    wanted = (Wanted("a", "numbers/english"), Wanted("b", "numbers/morse"))
    (report, _) = finished(repairs(Order(average, wanted, sidecar=True), tmp_path / "out"))
    assert "base" not in report.scores  # no recipe, so no base is known
    body, patch = worn(tmp_path / "out", "a")
    with applied(body.model, patch):
        right = exact_match(body.model, body.tokenizer, tasks()["english"].test)
    assert float(right.double().mean()) == report.scores["repaired"]
    with pytest.raises(MergeError, match="no repair for 'c'"):
        worn(tmp_path / "out", "c")
    save_file(
        {k: t + 1 for k, t in load_file(average / "model.safetensors").items()}, tmp_path / "out/model.safetensors"
    )
    with pytest.raises(MergeError, match="not on these"):
        worn(tmp_path / "out", "a")


def test_the_mean_over_experts_is_one_goal_for_all_and_the_merge_without_an_expert_is_scored(tmp_path):
    recipe = Recipe("numbers/base", EIGHT[2:5], "linear")
    merged(recipe, tmp_path / "merged")
    wanted = (Wanted("english", "numbers/english"), Wanted("morse", "numbers/morse"))
    order = Order(tmp_path / "merged", wanted, recipe, target="mean", sidecar=True, samples=8, without=True)
    reports = finished(repairs(order, tmp_path / "out"))
    patches = [worn(tmp_path / "out", name)[1] for name in ("english", "morse")]
    assert all(torch.equal(one.scale, patches[1].sites[name].scale) for name, one in patches[0].sites.items())
    assert reports[0].samples == 16 and patches[0].target == "mean"
    assert {"without the expert", "without the expert, repaired"} <= reports[0].scores.keys()
    assert reports[1].scores["without the expert"] < reports[1].scores["expert"]


def test_an_expert_without_weight_in_the_merge_has_none_in_the_mean_over_experts(average, tmp_path):
    wanted = (Wanted("english", "numbers/english"), Wanted("morse", "numbers/morse"))
    goals = []
    for i, weight in enumerate((0.0, 1.0)):
        recipe = Recipe("numbers/base", (Expert("numbers/english"), Expert("numbers/morse", weight)), "linear")
        order = Order(average, wanted, recipe, target="mean", sidecar=True, samples=8)
        finished(repairs(order, tmp_path / str(i)))
        goals.append(worn(tmp_path / str(i), "english")[1].sites)
    assert any(not torch.equal(one.scale, goals[1][name].scale) for name, one in goals[0].items())
    for weight in (-1.0, [0.5, 1.0]):
        recipe = Recipe("numbers/base", (Expert("numbers/english"), Expert("numbers/morse", weight)), "linear")
        with pytest.raises(MergeError, match="must be one number each, at least 0, .* own expert instead"):
            next(repairs(Order(average, wanted, recipe, target="mean"), tmp_path / "out"))


# Calibration data ---------------------------------------------------------------------------------------------


def test_an_expert_answers_the_prompts_that_have_no_answer():
    expert, pairs = running(ASSETS / "numbers/morse"), tasks()["morse"].calibration[:20]
    given = joined(batches_of(expert, pairs))
    asked = joined(batches_of(expert, [(prompt, None) for prompt, _ in pairs]))
    same = [torch.equal(a[m.bool()], b[n.bool()]) for a, m, b, n in zip(*given.values(), *asked.values())]
    assert sum(same) >= 18
    (mixed,) = batches_of(expert, [pairs[0], (pairs[1][0], None)] + [*pairs[2:4]])
    assert len(mixed["input_ids"]) == 4


def test_answers_side_by_side_are_those_given_alone():
    expert = running(ASSETS / "numbers/english")
    prompts = [torch.tensor(expert.tokenizer.encode(prompt)) for prompt, _ in tasks()["english"].test[:5]]
    together = list(greedy(expert, prompts))
    assert all(torch.equal(one, *greedy(expert, [prompt])) for one, prompt in zip(together, prompts))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "one\n\ntwo\n", "at least 4 calibration samples, and 2 are"),
        ("a.jsonl", '{"prompt": "x"}\nno', "line 2, is not JSON"),
        ("a.jsonl", '{"prompt": 7}', "line 1, must be"),
        ("a.jsonl", "[]", "line 1, must be"),
        ("absent/a.txt", None, "Cannot read the calibration data"),
    ],
)
def test_calibration_files_that_are_wrong_are_refused_by_name_and_line(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(MergeError, match=said):
        read_samples(tmp_path / name)


def test_prompts_are_a_line_each_and_answers_may_be_given(tmp_path):
    (tmp_path / "a.txt").write_text("un\n\n deux \ntrois\nquatre", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"prompt": p, "answer": "x"}) for p in "abcd"))
    assert read_samples(tmp_path / "a.txt")[1] == ("deux", None)
    assert read_samples(tmp_path / "a.jsonl")[0] == ("a", "x")


IDS = torch.ones(4, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_ids": torch.tensor(3)}, "must hold the model's inputs, .* each with as many samples"),
        ({"input_ids": IDS.float()}, r"input_ids as float32 \[4, 5\], but token ids are whole numbers"),
        ({"input_ids": IDS[0]}, r"input_ids as int64 \[5\], but token ids are whole numbers, \[sample, token\]"),
        ({"input_ids": -IDS}, "holds token -1, but input_ids count from 0"),
        ({"input_ids": 10**6 * IDS}, "holds token 1000000, but the model knows .* only"),
        (
            {"input_ids": IDS, "attention_mask": IDS[:, 1:]},
            r"attention_mask as \[4, 4\] and input_ids as \[4, 5\], but there is one entry per token",
        ),
        ({"ids": IDS}, r"LlamaForCausalLM does not take the calibration data, which holds ids \[4, 5\]: "),
        ({"input_ids": IDS, "position_ids": IDS[:, 1:]}, r"which holds input_ids \[4, 5\], position_ids \[4, 4\]: "),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused_with_what_they_are(average, tmp_path, given, said):
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, tmp_path / "a.safetensors")
    wanted = Wanted("french", "numbers/french", str(tmp_path / "a.safetensors"))
    with pytest.raises(MergeError, match=said):
        finished(repairs(Order(average, (wanted,)), tmp_path / "out"))


def test_without_an_end_of_sequence_an_answer_ends_with_its_last_token():
    expert = running(ASSETS / "numbers/morse")
    pair = tasks()["morse"].calibration[0]
    (whole,) = batches_of(expert, [pair])
    expert.tokenizer.eos_token = None
    (open_,) = batches_of(expert, [pair])
    assert torch.equal(open_["input_ids"], whole["input_ids"][:, :-1])
    (asked,) = batches_of(expert, [(pair[0], None)], tokens=5)
    assert asked["input_ids"].shape[1] == len(expert.tokenizer.encode(pair[0])) + 5


def test_an_adapter_with_a_configuration_of_its_model_is_an_adapter(average, tmp_path):
    lora = shutil.copytree(ASSETS / "numbers/french-lora", tmp_path / "lora")
    shutil.copy(ASSETS / "numbers/base/config.json", lora)
    (tmp_path / "prompts.txt").write_text("french: 21 =\nfrench: 2 =\nfrench: 3 =\nfrench: 4 =\n")
    wanted = Wanted("french", str(lora), str(tmp_path / "prompts.txt"))
    (report,) = finished(repairs(Order(average, (wanted,), RECIPE), tmp_path / "out"))
    assert report.samples == 4
    with pytest.raises(MergeError, match="is an adapter, and its base is not known"):
        finished(repairs(Order(average, (wanted,)), tmp_path / "other"))


def test_text_to_text_models_answer_and_encoders_only_read():
    tokenizer = running(ASSETS / "numbers/base").tokenizer
    pairs = [(prompt, None if i % 2 else answer) for i, (prompt, answer) in enumerate(tasks()["sort"].calibration[:18])]
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    writer = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    batches = batches_of(Running(writer, tokenizer), pairs, tokens=5)
    assert [len(batch["decoder_input_ids"]) for batch in batches] == [16, 2]
    assert not batches[0]["decoder_input_ids"][:, 0].any()  # where decoding starts
    assert statistics(writer, batches, sites(writer))["decoder.block.0.layer.0.layer_norm|out"].count == sum(
        int(batch["decoder_attention_mask"].sum()) for batch in batches
    )
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    reader = Running(transformers.BertModel(config).eval(), tokenizer)
    read = batches_of(reader, pairs)
    assert statistics(reader.model, read, sites(reader.model)) and set(read[0]) == {"input_ids", "attention_mask"}
    with pytest.raises(MergeError, match="has no tokenizer"):
        batches_of(Running(reader.model, None, "reader"), pairs)


def test_models_with_different_vocabularies_are_refused():
    one = running(ASSETS / "numbers/base")
    other = Running(one.model, transformers.AutoTokenizer.from_pretrained(ASSETS / "numbers/base"), "other")
    check_vocabulary(one, other)
    other.tokenizer.add_tokens(["wholly new"])
    with pytest.raises(MergeError, match="'base' and 'other' have different vocabularies"):
        check_vocabulary(one, other)


# Coordinates ----------------------------------------------------------------------------------------------------


def test_experts_of_one_base_share_their_channels_and_strangers_do_not():
    expert, kin, given = (running(ASSETS / "numbers" / n) for n in ("french", "sort", "base"))
    (batch,) = batches_of(given, tasks()["french"].calibration[:16])
    where = sites(expert.model)
    assert own_channels(expert.model, kin.model, batch, where) > 0.9
    assert own_channels(expert.model, expert.model, batch, where) > 0.99
    stranger = transformers.LlamaForCausalLM(expert.model.config).eval()
    assert own_channels(expert.model, stranger, batch, where) < 0.2
    with pytest.raises(MergeError, match="align one to the other first"):
        check_coordinates(expert.model, stranger, batch, where)


# The command line -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Two tiny image models of different trainings, their average, and images to calibrate on."""
    place = tmp_path_factory.mktemp("strangers")
    name = "ResNetForImageClassification"
    for seed in (1, 2):
        families.model(name, seed).save_pretrained(place / f"expert-{seed}")
    families.average(name).save_pretrained(place / "merged")
    save_file(families.batch(name, 8), place / "images.safetensors")
    return place


def asked(*words):
    return main(["repair", *map(str, words)])


def test_images_are_repaired_with_each_experts_own_head(strangers, tmp_path, capsys):
    words = [strangers / "merged", "--out", tmp_path / "out", "--unaligned"]
    for seed in (1, 2):
        words += ["--task", f"task-{seed}={strangers}/expert-{seed}", "--data", strangers / "images.safetensors"]
    assert asked(*words) == 0
    assert "2 repaired models" in capsys.readouterr().out
    written = load_file(tmp_path / "out/task-2/model.safetensors")
    expert = load_file(strangers / "expert-2/model.safetensors")
    assert torch.equal(written["classifier.1.weight"], expert["classifier.1.weight"])
    assert transformers.ResNetForImageClassification.from_pretrained(tmp_path / "out/task-1")


def test_experts_of_different_trainings_are_told_to_align_first(strangers, tmp_path, capsys):
    words = [strangers / "merged", "--out", tmp_path / "out"]
    for seed in (1, 2):
        words += ["--task", f"task-{seed}={strangers}/expert-{seed}", "--data", strangers / "images.safetensors"]
    assert asked(*words) == 1
    assert "align one to the other first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unrelated_experts_of_a_recipe_that_aligns_are_measured_as_they_went_into_the_merge(tmp_path, capsys):
    assert asked(ASSETS / "recipes/digits-scratch.yaml", "--out", tmp_path / "out") == 0
    capsys.readouterr()
    report = RepairReport.from_json((tmp_path / "out/scratch-invert/repair.json").read_text(encoding="utf-8"))
    assert report.scores["expert"] > 0.95  # aligned, it is still itself
    assert report.scores["repaired"] > report.scores["merged"] + 0.3
    assert report.scores["repaired"] > report.scores["base, repaired"] + 0.2
    assert report.ratios[1] == pytest.approx(1, abs=1e-3)


def test_prompts_of_ones_own_repair_an_expert_of_ones_own(trio_of_llamas, tmp_path, capsys):
    recipe, expert, prompts = trio_of_llamas
    words = [recipe, "--task", f"mine={expert}", "--data", prompts, "--out", tmp_path / "out", "--samples", 4]
    assert asked(*words, "--without") == 0
    said = capsys.readouterr().out
    assert "mine" in said and "affine" in said
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out/mine")
    assert made.config.attention_bias and made.config.mlp_bias
    assert asked(*words[:-4], "--out", tmp_path / "rms", "--mode", "rms") == 0
    assert not transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "rms/mine").config.mlp_bias


@pytest.fixture
def trio_of_llamas(tmp_path):
    """A recipe of two bundled experts, one of them copied as if it were the user's own, and some prompts."""
    (tmp_path / "recipe.yaml").write_text(recipe_of("numbers/base", "numbers/french", "numbers/sort").to_yaml())
    (tmp_path / "prompts.txt").write_text("sort: 7394 =\nsort: 121 =\nsort: 5 =\nsort: 982 =\n")
    mine = tmp_path / "mine"
    running(ASSETS / "numbers/sort").model.save_pretrained(mine)
    running(ASSETS / "numbers/sort").tokenizer.save_pretrained(mine)
    return tmp_path / "recipe.yaml", mine, tmp_path / "prompts.txt"


def test_what_is_asked_wrongly_is_one_line_and_writes_nothing(trio_of_llamas, tmp_path, capsys):
    recipe, expert, prompts = trio_of_llamas
    cases = {
        "must be NAME=EXPERT": [recipe, "--task", "french"],
        "no calibration data for 'mine'": [recipe, "--task", f"mine={expert}"],
        "stands before any --task": [recipe, "--data", prompts, "--task", f"mine={expert}"],
        "'a/b' cannot name a task": [recipe, "--task", "a/b=numbers/french"],
        "'..' cannot name a task": [recipe, "--task", "..=numbers/french"],
        "'.a' cannot name a task": [recipe, "--task", ".a=numbers/french"],
        "'" + 101 * "a" + "' cannot name a task": [recipe, "--task", 101 * "a" + "=numbers/french"],
        "Two tasks are called 'a'": [recipe, "--task", "a=numbers/french", "--task", "a=numbers/sort"],
        "Take 4 to 512": [recipe, "--samples", 3],
        "no mode of repair 'afine'. Did you mean 'affine'?": [recipe, "--mode", "afine"],
        "Known are: affine, auto, rms, shift": [recipe, "--mode", "bogus"],
        "A clamp is at least 1 (which lets no scale change), not 0.": [recipe, "--clamp", 0],
        "There is no folder './nosuch'": [recipe, "--task", "a=./nosuch"],
        "There is no folder '/nowhere'": [recipe, "--task", "a=/nowhere", "--data", prompts],
        "Cannot read the calibration data": [recipe, "--task", f"a={expert}", "--data", tmp_path / "absent"],
        "Did you mean 'foldable'": [recipe, "--sites", "foldabel"],
        "have no place in the weights": [recipe, "--sites", "official", "--mode", "affine"],
        "Name at least one task": ["numbers/base"],
        "There is no folder": [tmp_path / "absent", "--task", "a=numbers/french"],
        "Name the recipe": ["numbers/base", "--task", "a=numbers/french", "--without"],
        "its base is not known": ["numbers/base", "--task", "a=numbers/french-lora"],
    }
    for said, words in cases.items():
        assert asked(*words, "--out", tmp_path / "out") == 1
        line = capsys.readouterr().err
        assert said in line and line.count("\n") == 1, (said, line)
    assert asked(recipe, "--out", prompts.parent) == 1
    assert "exists already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bundled_image_experts_need_no_data_and_are_scored_with_their_controls(tmp_path, capsys):
    recipe = recipe_of("digits/base", "digits/upright", "digits/invert")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert asked(tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--samples", 128) == 0
    assert "base, repaired" in capsys.readouterr().out
    report = RepairReport.from_json((tmp_path / "out/invert/repair.json").read_text(encoding="utf-8"))
    assert report.scores["repaired"] >= report.scores["merged"] - 0.03
    assert report.scores["repaired"] >= report.scores["base, repaired"] + 0.1
