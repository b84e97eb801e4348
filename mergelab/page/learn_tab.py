"""The Learn tab: a guided path of lessons, turned by buttons, keys or a list. What is taught stands in lessons/."""

import html
import json
from typing import Any

import gradio as gr

from mergelab.lessons.course import CHAPTERS, LESSONS, chapter_of, known
from mergelab.lessons.experts import MODULE
from mergelab.lessons.lesson import Lesson
from mergelab.lessons.truncation import ETA, FORMULAS, START
from mergelab.page.form import Form
from mergelab.page.panel import PlotlyPanel
from mergelab.page.spectra_tab import Spectra
from mergelab.page.telling import AT_ONCE, saying, told
from mergelab.page.touch import TouchMatrix
from mergelab.repair.stories import STORIES

LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]
TABS = {"spectra": "Spectra", "sweep-tab": "Sweep", "merge": "Merge", "repair": "Repair"}
NEXT = {  # what to press there
    "spectra": "The recipe of the lesson is in the form, and its spectra are on the right.",
    "sweep-tab": "The recipe of the lesson is in the form. Press Sweep to score it over the knob.",
    "merge": "The recipe of the lesson is in the form. Press Merge to make and score it.",
    "repair": f"The recipe of the lesson is in the form; here, '{next(iter(STORIES))}' tells this very story.",
}
KEYS = "Arrow keys turn the page, too."
_ORDER = list(LESSONS)


def draw_learn_tab(form: Form, tabs: gr.Tabs, spectra: Spectra) -> gr.Dropdown:
    """Draw the tab. Returns the step that it shows, as its address: set it, and the tab follows."""
    first = _ORDER[0]
    names = [(f"{i} · {chapter.title}", chapter.name) for i, chapter in enumerate(CHAPTERS, start=1)]
    chapter = gr.Radio(names, value=chapter_of(first).name, label="Chapters", container=False, elem_id="learn-chapters")
    with gr.Row(elem_id="learn-turn"):
        back = gr.Button("Back", interactive=False, min_width=80, elem_id="learn-back")
        steps = [(f"{_number(address)} {lesson.title}", address) for address, lesson in LESSONS.items()]
        step = gr.Dropdown(
            steps, value=first, label="Step", container=False, allow_custom_value=True, elem_id="learn-step"
        )
        next_ = gr.Button("Next", variant="primary", min_width=80, elem_id="learn-next")
    progress = gr.HTML(_progress(first), elem_id="learn-progress", padding=False)
    words = gr.Markdown(_words(LESSONS[first]), latex_delimiters=LATEX, elem_id="learn-words")
    picture = PlotlyPanel(LESSONS[first].figure(), label="Lesson", elem_id="learn-picture", height=340)
    with gr.Column(visible=False, elem_id="learn-touch") as touch:
        gr.Markdown(FORMULAS, latex_delimiters=LATEX, elem_id="learn-formulas")
        TouchMatrix(START, ETA)
    said = gr.Markdown(LESSONS[first].said, elem_id="learn-said")
    try_ = gr.Button(_try(LESSONS[first]), elem_id="learn-try")

    def show(address: str | None) -> dict[Any, Any]:
        address = known(address)
        lesson = LESSONS[address]
        return {
            chapter: chapter_of(address).name,
            progress: _progress(address),
            words: _words(lesson),
            picture: gr.update(value=lesson.figure(), visible=lesson.drawn is not None),
            touch: gr.update(visible=lesson.drawn is None),
            said: lesson.said,
            try_: _try(lesson),
            back: gr.update(interactive=address != _ORDER[0]),
            next_: gr.update(interactive=address != _ORDER[-1]),
        }

    def opened(address: str | None) -> dict[Any, Any]:
        lesson = LESSONS[known(address)]
        shown_there = {spectra.modules: MODULE} | (
            {spectra.facts: lesson.fact, spectra.drawn: ""} if lesson.fact else {}
        )
        return {
            **form.filled(lesson.recipe),
            form.status: saying(NEXT[lesson.tab], "good"),
            tabs: gr.Tabs(selected=lesson.tab),
            **(shown_there if lesson.tab == "spectra" else {}),
        }

    shown = [chapter, progress, words, picture, touch, said, try_, back, next_]
    step.change(told(show), step, shown, trigger_mode="always_last", **AT_ONCE)
    back.click(None, step, step, js=_turned(-1))
    next_.click(None, step, step, js=_turned(1))
    chapter.input(lambda name: f"{name}-1", chapter, step, **AT_ONCE)
    there = [spectra.facts, spectra.drawn, spectra.modules]
    try_.click(told(opened), step, [*form.outputs, form.status, tabs, *there], **AT_ONCE)
    return step


def _turned(by: int) -> str:
    """The step before or after another one, in the browser."""
    return f"at => {{ const all = {json.dumps(_ORDER)}; return all[Math.max(0, all.indexOf(at)) + {by}] || at }}"


def _number(address: str) -> str:
    """An address as a reader counts: 'truncation-2' is 3.2."""
    return f"{CHAPTERS.index(chapter_of(address)) + 1}.{address.rpartition('-')[2]}"


def _progress(address: str) -> str:
    part, at = chapter_of(address), _ORDER.index(address) + 1
    said = f"{part.title}, step {address.rpartition('-')[2]} of {len(part.lessons)}; {at} of {len(_ORDER)} in all."
    return (
        f'<div class="ml-progress"><progress max="{len(_ORDER)}" value="{at}" aria-label="How far you are"></progress>'
        f'<span role="status">{html.escape(said)}</span><span class="ml-keys">{KEYS}</span></div>'
    )


def _words(lesson: Lesson) -> str:
    return f"## {lesson.title}\n{lesson.words}"


def _try(lesson: Lesson) -> str:
    return f"Try this in {TABS[lesson.tab]}"
