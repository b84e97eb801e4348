"""Whether a tab's figures are of the recipe in the form: if not, they fade and a line says so."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.gallery import with_all_settings
from mergelab.page.form import Form
from mergelab.page.telling import AT_ONCE, told
from mergelab.recipes.recipe import Recipe
from mergelab.scores.knobs import EXPERTS

EXAMPLE = "**Example, made in advance.**"
_OTHER = '<p class="ml-other" role="status">This is of another recipe than the one in the form. Press {} for yours.</p>'


@dataclass(frozen=True)
class Freshness:
    """Two widgets. made: what the figures are of; line: what is said of that, nothing while it is the form's recipe."""

    made: gr.State
    line: gr.HTML

    def updates(self, recipe: Recipe | None, knob: str = "") -> dict[Any, Any]:
        """Updates that say: the figures are of this recipe (None: of what is chosen elsewhere than in the form).

        knob: the setting that they vary.
        """
        return {self.made: (knob, made_of(recipe, knob) if recipe else ""), self.line: ""}


def draw_freshness(form: Form, tab: gr.Tab, verb: str, recipe: Recipe, knob: str = "") -> Freshness:
    """Draw the line over figures of that recipe. verb: the button that makes them anew."""
    fresh = Freshness(gr.State((knob, made_of(recipe, knob))), gr.HTML("", padding=False, elem_classes="ml-fresh"))

    def looked(data: Mapping[Any, Any]) -> Any:
        knob, made = data[fresh.made]
        try:
            return "" if made in ("", made_of(form.recipe(data), knob)) else _OTHER.format(verb)
        except MergeError:  # no recipe: the status says why
            return gr.skip()

    events = [form.settled.click, tab.select]
    gr.on(events, told(looked), form.inputs | {fresh.made}, fresh.line, trigger_mode="always_last", **AT_ONCE)
    return fresh


def made_of(recipe: Recipe, knob: str = "") -> str:
    """A name for a recipe, whatever the value of a knob that is varied."""
    full = with_all_settings(recipe)
    settings = {name: value for name, value in full.settings.items() if name != knob}
    experts = full.experts[:1] if knob == EXPERTS else full.experts  # a sweep over their number takes the first ones
    return replace(full, settings=settings, experts=experts).hash
