"""Scores are what generation and the loss of the library say, and their intervals those of the textbooks."""

import copy
import math
import statistics
from dataclasses import replace

import pytest
import torch
from making import finished

from mergelab import MergeError
from mergelab.assets import bundled
from mergelab.maths.interval import student, wilson
from mergelab.model import Running, answer, running
from mergelab.scores.questions import Questions
from mergelab.scores.scoreboard import Board
from mergelab.scores.scoring import TaskScore, mean_score, scored, sign_test
from mergelab.tasks import exact_match, tasks


@pytest.fixture(scope="module")
def base():
    return running(bundled()["numbers/base"])


def exact(task, amounts):
    return TaskScore(task, "exact match", tuple(map(float, amounts)), (1,) * len(amounts))


@pytest.mark.parametrize("task", ["french", "roman"])
def test_bundled_tasks_score_as_the_bundled_scorer_does(base, task):
    pairs = tasks()[task].test[:60]
    (score,) = finished(scored(base, [Questions(task, pairs)]))
    assert list(map(bool, score.amounts)) == exact_match(base.model, base.tokenizer, pairs).tolist()
    assert score.value == sum(score.amounts) / 60


def test_an_own_answer_needs_no_leading_space_and_agrees_with_what_the_model_writes(base):
    prompts = ["morse: 21 =", "english: 21 ="]
    said = [list(answer(base, prompt))[-1] for prompt in prompts]
    (score,) = finished(scored(base, [Questions("own", tuple(zip(prompts, said)))]))
    assert score.amounts == (1.0, 1.0)
    (score,) = finished(scored(base, [Questions("own", tuple((p, s + " more") for p, s in zip(prompts, said)))]))
    assert score.amounts == (0.0, 0.0)


def test_an_answer_that_goes_on_is_right_only_if_it_need_not_end(base):
    whole = list(answer(base, "morse: 21 ="))[-1]
    first = (("morse: 21 =", whole.split()[0]),)
    right = [finished(scored(base, [Questions("own", first, ends=ends)]))[0].value for ends in (True, False)]
    assert right == [0.0, 1.0]


def test_with_a_tokenizer_without_an_end_no_answer_need_end():
    run = running(bundled()["numbers/base"])
    whole = list(answer(run, "morse: 21 ="))[-1]
    run.tokenizer.eos_token = None
    (score,) = finished(scored(run, [Questions("own", (("morse: 21 =", whole.split()[0]),))]))
    assert score.value == 1.0


def test_perplexity_is_that_of_the_loss_of_the_library(base):
    prompt, text = "english: 21 =", " twenty-one"
    (score,) = finished(scored(base, [Questions("own", ((prompt, text),), "perplexity")]))
    ids = torch.tensor([base.tokenizer.encode(prompt) + base.tokenizer.encode(text, add_special_tokens=False)])
    labels = ids.clone()
    labels[:, : len(base.tokenizer.encode(prompt))] = -100
    with torch.no_grad():
        loss = base.model(input_ids=ids, labels=labels).loss
    assert score.value == pytest.approx(math.exp(float(loss)), rel=1e-5)


def test_a_bare_text_is_scored_from_its_first_token_on_where_the_tokenizer_has_one_to_begin_with(base):
    (score,) = finished(scored(base, [Questions("own", (("", "twenty-one"),), "perplexity")]))
    assert score.sizes == (len(base.tokenizer.encode("twenty-one", add_special_tokens=False)),)


def test_scoring_can_be_stopped_between_two_batches(base):
    job = scored(base, [Questions("a", tasks()["sort"].test), Questions("b", tasks()["sort"].test)])
    assert [next(job), next(job), next(job)] == ["a", "a", "b"]
    job.close()


def test_what_does_not_fit_is_refused_by_a_sentence(base):
    with pytest.raises(MergeError, match="Prompt 2 of 'own' has .* tokens; this model has room for 128"):
        finished(scored(base, [Questions("own", (("a", "b"), ("7 " * 200, "b")))]))
    with pytest.raises(MergeError, match="no tokenizer"):
        finished(scored(Running(base.model, None), [Questions("own", (("a", "b"),))]))
    encoder = Running(type("Model", (), {"config": type("Config", (), {"is_encoder_decoder": True})})(), None)
    with pytest.raises(MergeError, match="has an encoder"):
        finished(scored(encoder, []))


def test_the_sign_test_counts_only_where_two_models_differ():
    assert sign_test([1, 1, 0, 1], [1, 0, 1, 0]) == (2, 1, 1.0)
    assert sign_test([1] * 8, [0] * 8) == (8, 0, 2 / 2**8)
    assert sign_test([1, 0], [1, 0]) == (0, 0, 1.0)


def test_the_mean_of_equal_tasks_is_as_sure_as_all_their_prompts_together():
    tasks = [exact("a", [1, 0, 1, 1]), exact("b", [0, 0, 1, 0])]
    mean = mean_score(tasks)
    assert mean.value == 0.5 and (mean.low, mean.high) == wilson(0.5, 8)


def test_more_texts_narrow_the_interval_of_a_perplexity_and_one_has_none():
    one = TaskScore("a", "perplexity", (2.0,), (2,))
    assert one.interval == (one.value, one.value) == (math.e, math.e)
    few = TaskScore("a", "perplexity", (1.0, 3.0, 2.0), (1, 2, 2))
    many = TaskScore("a", "perplexity", few.amounts * 20, few.sizes * 20)
    low, high = many.interval
    assert many.value == pytest.approx(few.value)
    assert few.interval[0] < low < few.value < high < few.interval[1]


def test_the_normalised_average_compares_each_task_with_its_own_expert():
    scores = {
        ("base", "french"): exact("french", [0, 0, 0, 1]),
        ("french", "french"): exact("french", [1, 1, 1, 1]),
        ("sums-lora", "french"): exact("french", [0, 0, 0, 0]),
        ("merged", "french"): exact("french", [1, 1, 1, 0]),
        ("base", "own"): exact("own", [0, 0]),
        ("french", "own"): exact("own", [0, 0]),
        ("sums-lora", "own"): exact("own", [1, 0]),
        ("merged", "own"): exact("own", [1, 0]),
    }
    board = Board(("base", "french", "sums-lora", "merged"), ("french", "sums-lora"), scores)
    assert (board.master("french"), board.master("own")) == ("french", "sums-lora")
    assert board.normalised("merged") == pytest.approx((0.75 + 1) / 2)
    assert board.normalised("base") == pytest.approx(0.25 / 2)
    headers, rows = board.table()
    assert all(len(row) == len(headers) for row in rows)
    assert [row[-1] for row in rows if row[:2] == ["merged", "mean"]] == [pytest.approx(0.875)]


def test_where_no_expert_is_right_there_is_nothing_to_normalise_by():
    scores = {("e", "t"): exact("t", [0, 0]), ("merged", "t"): exact("t", [1, 0])}
    assert Board(("e", "merged"), ("e",), scores).normalised("merged") is None


@pytest.mark.parametrize(("freedom", "wanted"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (30, 2.042)])
def test_few_texts_are_as_unsure_as_student_says(freedom, wanted):
    assert student(freedom) == pytest.approx(wanted, rel=3e-3)
    amounts = tuple(float(i) for i in range(freedom + 1))
    low, high = TaskScore("a", "perplexity", amounts, (1,) * (freedom + 1)).interval
    spread = statistics.stdev(amounts) / math.sqrt(freedom + 1)
    assert math.log(high / low) / 2 == pytest.approx(wanted * spread, rel=3e-3)


def test_of_a_text_of_one_token_nothing_is_predicted(base):
    base = replace(base, tokenizer=copy.copy(base.tokenizer))
    base.tokenizer.encode = lambda text, **how: [5] if text else []
    with pytest.raises(MergeError, match="Text 1 of 'own' is one token, and nothing is predicted of it"):
        list(scored(base, [Questions("own", (("", "x"),), "perplexity")]))
