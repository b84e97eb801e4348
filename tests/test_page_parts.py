"""Parts of the page that need no browser: what is listed, said and drawn for given numbers."""

from dataclasses import dataclass

import pytest

from mergelab.errors import MergeError
from mergelab.page.history import with_run
from mergelab.page.sweep_tab import how_many
from mergelab.page.telling import running, stopped
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.step import Step


@pytest.mark.parametrize("points", [0, 2.5, -3, 61, float("inf")])
def test_a_number_of_points_that_is_none_is_refused_by_the_name_of_its_field(points):
    with pytest.raises(MergeError, match=r"^Points must be a whole number from 1 to 60, not "):
        how_many(points)
    assert how_many(3.0) == 3


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


def test_a_stopped_job_says_what_is_left_of_it_and_one_that_ended_says_nothing_more():
    status = running("Sweeping", Step(1, 10, "η"))
    assert "Nothing half-made was kept" in stopped(status)
    assert "Stopped. Two points are shown." in stopped(status, "Two points are shown.")
    assert isinstance(stopped("done"), dict)
