"""The address of what is shown: it follows the page, can be copied, and brings back recipe, tab, module, fact and step.

The browser writes it by itself (assets/address.js); the server is asked only for the words of a recipe that changed.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from mergelab.assets import bundled
from mergelab.errors import MergeError
from mergelab.lab.gallery import FIRST, examples
from mergelab.lab.lab import Lab
from mergelab.lab.link import example_of, recipe_of, words_of
from mergelab.page.form import OWN, Form
from mergelab.page.spectra_tab import Spectra
from mergelab.page.telling import AT_ONCE, job, saying, told
from mergelab.recipes.recipe import Recipe
from mergelab.step import Step

_LONGEST = 12_000  # characters of a query; browsers and servers take little more
_HERE = "https://huggingface.co/spaces/%s"


def draw_link(lab: Lab, form: Form, tabs: gr.Tabs, spectra: Spectra, others: Mapping[str, gr.components.Component]):
    """Wire the gallery, the address and the button that copies it.

    others: further words of a link, each with the widget whose value it is.
    """
    named = {"fact": spectra.facts, "module": spectra.modules, **others}
    known = [tab.id for tab in tabs.children]
    words = gr.Textbox(visible="hidden", elem_id="link-words")

    def opened(recipe: Recipe, query: Mapping[str, str]) -> Iterator[Step | dict]:
        """What shows a recipe, in one go; its analysis too, if all that it names is bundled."""
        shown = {widget: query[name] for name, widget in others.items() if name in query}
        shown |= {tabs: gr.Tabs(selected=query["tab"])} if query.get("tab") in known else {}
        if _is_bundled(recipe):
            report = yield from lab.analyse(recipe)
            shown |= spectra.pictures(report, query.get("fact", ""), query.get("module", ""))
        yield shown | form.filled(recipe)

    @job(form.status, "Opening the link")
    def restored(text: str) -> Iterator[Step | dict]:
        query = _query(text)
        if not query:
            yield {form.status: gr.skip()}
            return
        recipe = recipe_of(query)
        yield from opened(recipe, query)
        ask = "This link's recipe names models that are not bundled. Look at it, then press Analyse."
        said = "The recipe of this address is open: change it, or press Merge." if _is_bundled(recipe) else ask
        yield {form.status: saying(said)}

    @job(form.status, "Opening the example")
    def started(name: str) -> Iterator[Step | dict]:
        if name == OWN:
            yield {form.status: saying("Change anything in the form: it is a recipe of your own then.")}
            return
        if name not in examples():
            raise MergeError("There is no such example. Choose one of the list.")
        yield from opened(examples()[name].recipe, {})
        yield {form.status: saying(examples()[name].about)}

    def spelled(data: dict) -> dict[Any, Any]:
        """The recipe in the form as words; nothing while it is none."""
        try:
            recipe = form.recipe(data)
            return {words: json.dumps(words_of(recipe)), form.example: example_of(recipe) or OWN}
        except MergeError:
            return {words: gr.skip()}

    page = gr.context.Context.root_block
    outputs = [*form.outputs, *spectra.outputs, tabs, *others.values()]
    asked = gr.Textbox(visible="hidden")
    page.load(restored, asked, outputs, js="() => location.search", **AT_ONCE)
    begun = form.example.input(started, form.example, outputs, trigger_mode="always_last", **AT_ONCE)
    form.verb.governs([begun])
    both = [words, form.example]
    changed = form.settled.click(told(spelled), form.inputs, both, trigger_mode="always_last", **AT_ONCE)
    changed.then(None, words, None, js="words => mergelab.address(JSON.parse(words || '{}'))")
    form.eta.change(None, form.eta, None, js=f"eta => mergelab.address({{eta: eta === {_first_eta()} ? '' : eta}})")
    for name, widget in named.items():
        usual = json.dumps(widget.value)
        widget.change(None, widget, None, js=f"value => mergelab.address({{{name}: value === {usual} ? '' : value}})")
    for tab in tabs.children:
        word = "" if tab.id == known[0] else tab.id
        tab.select(None, None, None, js=f"() => mergelab.address({{tab: {json.dumps(word)}}})")
    form.link.click(None, None, None, js=f"() => mergelab.copyLink({json.dumps(_home())})")


def _is_bundled(recipe: Recipe) -> bool:
    return {recipe.base, *(expert.source for expert in recipe.experts)} <= bundled().keys()


def _query(text: str) -> dict[str, str]:
    """A link's words; MergeError if there are more than a link has."""
    if len(text or "") > _LONGEST:
        raise MergeError(f"This link is longer than {_LONGEST} characters, and was not opened.")
    try:
        pairs = parse_qsl((text or "").removeprefix("?"), max_num_fields=20)
    except ValueError:
        raise MergeError("This link has too many parts, and was not opened.") from None
    return {name: value for name, value in pairs if not name.startswith("__")}  # __theme is gradio's


def _home() -> str:
    """Where others find this page: on a Space the browser's own address is that of a frame."""
    return _HERE % os.environ["SPACE_ID"] if os.environ.get("SPACE_ID") else ""


def _first_eta() -> str:
    return f"{examples()[FIRST].recipe.settings['eta']:g}"
