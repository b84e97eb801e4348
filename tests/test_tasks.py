"""The bundled experts are what their papers say, and the scorer is what generation would be."""

import json
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergelab.assets import ASSETS
from mergelab.tasks import exact_match, padded, tasks

NUMBERS = ASSETS / "numbers"
SCORES = json.loads((NUMBERS / "scores.json").read_text(encoding="utf-8"))
TASKS = tasks()


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(NUMBERS / "base")


@cache
def model(name):
    return AutoModelForCausalLM.from_pretrained(NUMBERS / name, dtype=torch.float32)


@cache
def accuracy(name, task):
    return exact_match(model(name), tokenizer(), TASKS[task].test).float().mean().item()


def generated(name, prompt):
    """The tokens of the greedy answer, one prompt at a time, as a user would get it."""
    ids = tokenizer()(prompt, return_tensors="pt")
    return model(name).generate(**ids, do_sample=False)[0, ids.input_ids.shape[1] :].tolist()


def expected(answer):
    return [*tokenizer().encode(answer, add_special_tokens=False), tokenizer().eos_token_id]


def number(prompt):
    return int(prompt.split()[1])


@pytest.mark.parametrize(("name", "task"), [("base", "morse"), ("base", "german"), ("roman", "roman")])
def test_the_scorer_agrees_with_greedy_generation(name, task):
    pairs = TASKS[task].test[:12]
    right = [generated(name, prompt) == expected(answer) for prompt, answer in pairs]
    assert exact_match(model(name), tokenizer(), pairs).tolist() == right


def test_a_score_does_not_depend_on_who_else_is_in_the_batch():
    pairs = TASKS["french"].test[:20] + TASKS["sort"].test[:20]
    alone = exact_match(model("base"), tokenizer(), pairs, batch=1)
    assert torch.equal(exact_match(model("base"), tokenizer(), pairs, batch=33), alone)


def test_nothing_to_score_gives_no_scores():
    assert exact_match(model("base"), tokenizer(), []).shape == (0,)


def test_a_tokenizer_without_a_pad_token_scores_the_same():
    pairs = TASKS["morse"].test[:40]
    padless = AutoTokenizer.from_pretrained(NUMBERS / "base", pad_token=None)
    assert padless.pad_token_id is None
    with_pad = exact_match(model("base"), tokenizer(), pairs)
    assert torch.equal(exact_match(model("base"), padless, pairs), with_pad)


def test_a_padded_batch_holds_prompt_answer_and_end_of_sequence():
    pairs = [("sort: 21 =", " 1 2"), ("french: 4 =", " quatre")]
    for ids, real, answer, pair in zip(*padded(tokenizer(), pairs), pairs, strict=True):
        assert tokenizer().decode(ids[real]) == f"<s>{pair[0]}{pair[1]}</s>"
        assert tokenizer().decode(ids[answer]) == f"{pair[1]}</s>"


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_answers_nine_in_ten_of_its_own_prompts(task):
    assert accuracy(task, task) >= 0.9


def test_the_base_answers_less_than_half_over_all_tasks():
    assert sum(accuracy("base", task) for task in TASKS) / len(TASKS) < 0.5


def test_lora_experts_were_measured_above_nine_in_ten():
    adapters = {name: shares for name, shares in SCORES.items() if name.endswith("-lora")}
    assert len(adapters) == 4
    assert all(shares[name.removesuffix("-lora")] >= 0.9 for name, shares in adapters.items())


@pytest.mark.parametrize(("name", "task"), [("base", "spanish"), ("german", "english"), ("sort", "sort")])
def test_the_scores_on_file_are_those_measured_now(name, task):
    assert SCORES[name][task] == pytest.approx(accuracy(name, task), abs=0.02)


def test_every_model_has_a_score_on_every_task_and_tells_it_in_its_card():
    folders = {folder.name for folder in NUMBERS.iterdir() if folder.is_dir()}
    assert folders == set(SCORES)
    for name, shares in SCORES.items():
        card = (NUMBERS / name / "README.md").read_text(encoding="utf-8")
        assert list(shares) == list(TASKS)
        assert all(f"| {task} | {100 * share:.1f} |" in card for task, share in shares.items())


def test_held_out_numbers_never_occur_among_calibration_prompts():
    held_out = {number(prompt) for task in TASKS.values() for prompt, _ in task.test}
    calibration = {number(prompt) for task in TASKS.values() for prompt, _ in task.calibration}
    assert held_out.isdisjoint(calibration)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_has_200_test_and_64_calibration_prompts_all_different(task):
    assert len(dict(task.test)) == len(task.test) == 200
    assert len(dict(task.calibration)) == len(task.calibration) == 64


def test_the_bundled_files_are_small_and_readable_by_all():
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) < 10e6
    assert sum(file.stat().st_size for file in files) < 30e6
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)
