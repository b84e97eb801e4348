"""Parts of the page that need no browser: what is listed, said and drawn for given numbers."""

from dataclasses import dataclass, replace

import pytest

from mergelab.errors import MergeError
from mergelab.lab.own import experts_by_task, right_answers
from mergelab.page.freshness import made_of
from mergelab.page.history import with_run
from mergelab.page.prompt_tab import EXAMPLES, judged
from mergelab.page.sweep_tab import how_many
from mergelab.page.telling import running, stopped
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.step import Step


@pytest.mark.parametrize("points", [0, 2.5, -3, 61, float("inf")])
def test_a_number_of_points_that_is_none_is_refused_by_the_name_of_its_field(points):
    with pytest.raises(MergeError, match=r"^Points must be a whole number from 1 to 60, not "):
        how_many(points)
    assert how_many(3.0) == 3


def test_each_bundled_prompt_has_its_right_answer_and_its_own_expert():
    assert right_answers()["morse: 89 ="] == ("morse", "---.. ----.") and set(EXAMPLES) <= set(right_answers())
    found = experts_by_task(["numbers/english", "numbers/french-lora"])
    assert found["french"] == "numbers/french-lora" and found["morse"] == "numbers/morse" and len(found) == 8
    assert [judged(text, "12") for text in (" 12\n", "121")] == ["right", "wrong"]


RECIPE = Recipe("numbers/base", (Expert("numbers/french"), Expert("numbers/german")), "linear")


@dataclass(frozen=True)
class Made:
    """As much of a run as a list of merges reads."""

    recipe: Recipe = RECIPE
    sha256: str = 64 * "0"


def test_one_merge_is_listed_once_however_often_it_is_told():
    once = with_run([], "a", Made())
    assert with_run(once, "a", Made()) == once
    assert [past.label[:2] for past in with_run(once, "b", Made())] == ["2.", "1."]


def test_figures_are_of_a_recipe_whatever_the_knob_that_they_vary():
    star, other = (replace(RECIPE, method="star", settings={"eta": eta}) for eta in (40.0, 60.0))
    assert made_of(star) != made_of(other) and made_of(star, "eta") == made_of(other, "eta")
    assert made_of(star) == made_of(replace(star, settings={"eta": 40.0, "rescale": True}))
    fewer = replace(star, experts=star.experts[:1])
    assert made_of(star, "experts") == made_of(fewer, "experts") and made_of(star, "eta") != made_of(fewer, "eta")


def test_a_stopped_job_says_what_is_left_of_it_and_one_that_ended_says_nothing_more():
    status = running("Sweeping", Step(1, 10, "η"))
    assert "Nothing half-made was kept" in stopped(status)
    assert "Stopped. Two points are shown." in stopped(status, "Two points are shown.")
    assert isinstance(stopped("done"), dict)
