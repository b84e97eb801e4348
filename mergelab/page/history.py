"""The merges of this visit: load the settings of one back into the form. Each browser has its own."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab, Run
from mergelab.method import METHODS
from mergelab.page.form import Form
from mergelab.page.telling import AT_ONCE, told
from mergelab.recipes.recipe import Recipe
from mergelab.recipes.varying import in_words

LOOK = "To go back to one of these merges, click its row, or choose it here, and load its settings into the form."


@dataclass(frozen=True)
class History:
    """visit: the state with the visit's merges, newest first, as a list of Past; noted: the event that adds one."""

    visit: gr.State
    noted: Any


@dataclass(frozen=True)
class Past:
    """One merge of this visit: the key of its run, what it is called, its recipe, the start of its hash."""

    key: str
    label: str
    recipe: str
    sha256: str


def draw_history(lab: Lab, form: Form, merged: gr.State, table: gr.Dataframe) -> History:
    """Draw the chooser below the table of the visit's merges, whose last column is the hash."""
    visit = gr.State([])
    gr.Markdown(LOOK, elem_classes="ml-look")
    with gr.Row():
        chosen = gr.Dropdown([], label="A merge of this visit", scale=4, min_width=220, elem_id="past")
        load = gr.Button("Load these settings", scale=1, min_width=160, interactive=False, elem_id="load-past")

    def noted(key: str, before: list[Past]) -> dict[Any, Any]:
        if not key:
            return {visit: gr.skip()}
        entries = with_run(before, key, lab.run_named(key))
        labels = [entry.label for entry in entries]
        return {
            visit: entries,
            chosen: gr.update(choices=labels, value=entries[0].label),
            load: gr.update(interactive=True),
        }

    def of_row(entries: list[Past], event: gr.SelectData) -> str:
        row = getattr(event, "row_value", None) or [""]
        return next((entry.label for entry in entries if entry.sha256 == row[-1]), gr.skip())

    added = merged.change(told(noted), [merged, visit], [visit, chosen, load], **AT_ONCE)
    table.select(of_row, visit, chosen, **AT_ONCE)
    load.click(
        told(lambda label, entries: form.filled(_recipe(label, entries))), [chosen, visit], form.outputs, **AT_ONCE
    )
    return History(visit, added)


def with_run(before: list[Past], key: str, run: Run) -> list[Past]:
    """The visit's merges, newest first, with that run; as they are if it is the newest, as gradio may tell twice."""
    if before and before[0].key == key:
        return before
    label = f"{len(before) + 1}. {described_recipe(run.recipe)}"
    return [Past(key, label, run.recipe.to_yaml(), run.sha256[:12]), *before]


def described_recipe(recipe: Recipe) -> str:
    """A recipe in a few words, for a list."""
    return f"{METHODS[recipe.method].title} ({settings_in_words(recipe)}) of {', '.join(recipe.names)}"


def settings_in_words(recipe: Recipe) -> str:
    """A recipe's settings in one line."""
    return in_words(recipe.settings) or "no settings"


def _recipe(label: str, entries: list[Past]) -> Recipe:
    found = next((entry for entry in entries if entry.label == label), None)
    if found is None:
        raise MergeError("Choose one of the merges of this visit first.")
    return Recipe.from_yaml(found.recipe)
