"""The bundled digits are what their papers say, and their scorer is what a loop over pictures would be."""

import json
from functools import cache

import pytest
import torch
from transformers import AutoModelForImageClassification

from mergelab.assets import ASSETS, bundled
from mergelab.tasks import TRANSFORMS, Pictures, picture_tasks, right_labels

DIGITS = ASSETS / "digits"
SCORES = json.loads((DIGITS / "scores.json").read_text(encoding="utf-8"))
SCRATCH = [name for name in SCORES if name.startswith("scratch-")]


@cache
def model(name):
    return AutoModelForImageClassification.from_pretrained(DIGITS / name, dtype=torch.float32).eval()


@cache
def accuracy(name, task):
    return right_labels(model(name), picture_tasks()[task].test).float().mean().item()


def task_of(name):
    return name.removeprefix("scratch-").removesuffix("-2")


@pytest.mark.parametrize("name", [name for name in SCORES if name != "base"])
def test_an_expert_reads_nineteen_in_twenty_as_its_card_says(name):
    assert accuracy(name, task_of(name)) >= 0.95
    assert accuracy(name, task_of(name)) == pytest.approx(SCORES[name][task_of(name)], abs=0.01)


def test_the_base_reads_every_way_of_showing_a_digit_a_little_and_none_well():
    assert all(0.3 < accuracy("base", task) < 0.9 for task in TRANSFORMS)


@pytest.mark.parametrize("name", SCRATCH)
def test_a_net_from_its_own_initialisation_shares_no_weights_with_another(name):
    mine, other = (model(n).resnet.encoder.stages[1].layers[0].layer[0].convolution.weight for n in (name, "base"))
    assert abs(torch.cosine_similarity(mine.flatten(), other.flatten(), dim=0)) < 0.1


def test_there_are_four_transforms_and_one_task_twice_from_different_seeds():
    assert {task_of(name) for name in SCRATCH} == set(TRANSFORMS) and len(SCRATCH) == 5


def test_every_model_has_a_score_on_every_task_and_tells_it_in_its_card():
    assert {f"digits/{name}" for name in SCORES} == {name for name in bundled() if name.startswith("digits/")}
    for name, shares in SCORES.items():
        card = (DIGITS / name / "README.md").read_text(encoding="utf-8")
        assert list(shares) == list(TRANSFORMS)
        assert all(f"| {task} | {100 * share:.1f} |" in card for task, share in shares.items())


def test_the_base_stands_first_in_the_list_of_its_family():
    assert [name for name in bundled() if name.startswith("digits/")][0] == "digits/base"


def test_a_task_has_500_test_and_256_calibration_pictures_and_none_is_in_both():
    for task in picture_tasks().values():
        assert task.test.images.shape == (500, 1, 32, 32) and task.calibration.images.shape == (256, 1, 32, 32)
        assert task.test.images.min() >= 0 and task.test.images.max() <= 1
        held_out = {image.numpy().tobytes() for image in task.test.images}
        assert held_out.isdisjoint(image.numpy().tobytes() for image in task.calibration.images)


def test_no_two_transforms_show_the_same_picture():
    shown = [task.test.images for task in picture_tasks().values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(shown) for b in shown[:i])


def test_a_score_does_not_depend_on_who_else_is_in_the_batch():
    some = Pictures(*(part[:40] for part in vars(picture_tasks()["mirror"].test).values()))
    assert torch.equal(right_labels(model("base"), some, batch=1), right_labels(model("base"), some, batch=33))
    assert right_labels(model("base"), Pictures(some.images[:0], some.labels[:0])).shape == (0,)
