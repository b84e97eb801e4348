"""Two merges side by side: where they differ, their spectra, their scores, and their answers to one prompt."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab, Run, by_method, comparison_key
from mergelab.lab.own import own_questions
from mergelab.lab.saved import saved_table
from mergelab.markdown import plain
from mergelab.page.asked import Asked
from mergelab.page.form import Form
from mergelab.page.history import History, Past, described_recipe
from mergelab.page.numbers import frame_and_file
from mergelab.page.panel import PlotlyPanel
from mergelab.page.telling import AT_ONCE, job, saying, told
from mergelab.page.verbs import draw_verb
from mergelab.plots import compare as plots_compare
from mergelab.plots import scores as plots_scores
from mergelab.plots.parts import empty
from mergelab.recipes.recipe import Recipe
from mergelab.scores.compare import Comparison
from mergelab.step import Step

FORM, PLAIN = "the recipe in the form", "the plain average of the form's experts"
LOOK_MAP = (
    "A column is a layer, a row a kind of matrix. Look for bright cells: there the two recipes disagree most. "
    "**Click a cell** to see both spectra of that matrix."
)
LOOK_SPECTRA = (
    "Look where the lines part: a merge that truncates falls steeply where its directions end, down to what rounding "
    "leaves; one that rescales has its strongest directions higher."
)
LOOK_BARS = (
    "Look whether A and B swap places at a task; where their intervals overlap by much, the difference may be luck."
)
ABOUT = (
    "Two merges side by side: which matrices differ, both spectra of a matrix, their scores on the same prompts, and "
    "their answers to one. Press **Compare** to see what your recipe does otherwise than a plain average."
)
OPENING = "Choose two recipes. One that is not merged yet is merged first."


def draw_compare_tab(lab: Lab, form: Form, history: History, asked: Asked) -> None:
    """Draw the tab; wire Compare, Ask, Stop, and what chooses a tensor."""
    visit, keys = history.visit, gr.State([])  # keys: of the two runs that are compared
    with gr.Row():
        ours = gr.Dropdown([FORM, PLAIN], value=FORM, label="A", scale=2, min_width=220, elem_id="compare-a")
        other = gr.Dropdown([FORM, PLAIN], value=PLAIN, label="B", scale=2, min_width=220, elem_id="compare-b")
    verb = draw_verb("Compare", "compare", OPENING)
    about = gr.Markdown(ABOUT, elem_id="compared")
    with gr.Column(visible=False) as parts:
        with gr.Row():
            measure = gr.Radio(
                list(plots_compare.MEASURES), value="distance", label="Show", elem_id="measure", min_width=160
            )
            tensor = gr.Dropdown([], label="Matrix", elem_id="compare-module", min_width=220)
        heat = PlotlyPanel(empty(""), label="Difference", elem_id="difference", height=250)
        gr.Markdown(LOOK_MAP, elem_classes="ml-look")
        lines = PlotlyPanel(empty(""), label="Both spectra", elem_id="both-spectra", height=340)
        gr.Markdown(LOOK_SPECTRA, elem_classes="ml-look")
        bars = PlotlyPanel(empty("Both scores appear here."), label="Both scores", elem_id="both-scores", height=340)
        gr.Markdown(LOOK_BARS, elem_classes="ml-look")
        with gr.Accordion("All numbers", open=False):
            table = gr.Dataframe(label="A row per tensor", interactive=False, max_height=420, elem_id="compare-table")
            with gr.Row():
                download = gr.DownloadButton(
                    "The differences (CSV)", size="sm", interactive=False, elem_id="compare-csv"
                )
                scores = gr.DownloadButton("The scores (CSV)", size="sm")
        prompt = gr.Textbox("french: 7394 =", label="Ask both", elem_id="ask-both-prompt")
        asking = draw_verb("Ask both", "ask-both")
        with gr.Row():
            answers = [
                gr.Textbox(label=label, lines=3, interactive=False, min_width=200, elem_id=f"both-{label.lower()}")
                for label in "AB"
            ]

    @job(verb.status, "Comparing")
    def compare(data: dict) -> Iterator[Step | dict]:
        runs = []
        for label in (data[ours], data[other]):
            runs.append((yield from run_of(label, data)))
        if runs[0].folder == runs[1].folder or runs[0].recipe == runs[1].recipe:
            raise MergeError("A and B are the same recipe. Choose two that differ, or change the form.")
        comparison = yield from lab.compare(*runs)
        names = [run.folder.parent.name for run in runs]
        yield {keys: names, about: _about(runs), parts: gr.update(visible=True)}
        yield pictures(comparison, data[measure])
        questions, both = asked.questions(data), _together(*(run.recipe for run in runs))
        if questions is not None or own_questions(both):
            board = None
            for step in lab.scoreboard(both, {"A": runs[0].folder, "B": runs[1].folder}, questions):
                yield step
                if step.made:
                    board = step.made
                    yield {bars: plots_scores.board_bars(board)}
            path = saved_table(lab, "compared-scores", *board.table())
            yield {scores: gr.DownloadButton(value=path, interactive=True)}
        whole = comparison.whole
        said = (
            f"Over all tensors, embeddings too, the two changes are {whole.distance:.2f} of their size apart "
            f"(0 is equal, 1.41 unrelated); cosine {whole.cosine:.3f}."
        )
        yield {verb.status: saying(said, "good")}

    def run_of(label: str | None, data: dict) -> Generator[Step, None, Run]:
        """The run that a side names: of this visit while it is kept, else made anew."""
        past: Past | None = next((entry for entry in data[visit] if entry.label == label), None)
        if past and past.key in lab.runs:
            return lab.run_named(past.key)
        recipe = Recipe.from_yaml(past.recipe) if past else form.recipe(data)
        recipe = by_method(recipe, "linear") if label == PLAIN else recipe
        return (yield from lab.merged(recipe))

    def pictures(comparison: Comparison, show: str) -> dict[Any, Any]:
        numbers, path = frame_and_file(lab, "differences", comparison.table())
        names = list(comparison.spectra)
        first = max(names, key=lambda name: _distance(comparison, name), default=None)
        return {
            heat: plots_compare.difference_map(comparison, show),
            tensor: gr.update(choices=names, value=first),
            lines: plots_compare.two_spectra(comparison, first or ""),
            bars: empty("Scoring …"),
            table: numbers,
            download: gr.DownloadButton(value=path, interactive=True),
        }

    @job(asking.status, "Answering")
    def ask_both(data: dict) -> Iterator[Step | dict]:
        if not data[keys]:
            raise MergeError("Compare two recipes first; then both can be asked.")
        folders = [lab.run_named(name).folder for name in data[keys]]
        yield dict.fromkeys(answers, "")
        yield Step(0, len(folders), "loading the models")
        for texts in lab.answers(folders, data[prompt] or ""):
            yield dict(zip(answers, texts))
        yield {asking.status: saying("Both have answered.", "good")}

    def kept(names: list[str]) -> Comparison:
        runs = [lab.run_named(name) for name in names]
        if len(runs) != 2 or comparison_key(*runs) not in lab.comparisons:
            raise MergeError("That comparison is not kept any more. Press Compare again.")
        return lab.comparisons[comparison_key(*runs)]

    def clicked(names: list[str], event: gr.EventData) -> Any:
        name = str(getattr(event, "name", ""))
        return name if names and name in kept(names).spectra else gr.skip()

    def listed(entries: list[Past], left: str, right: str) -> list[Any]:
        choices = [FORM, PLAIN, *(entry.label for entry in entries)]
        kept_ones = (side if side in choices else other for side, other in ((left, FORM), (right, PLAIN)))
        return [gr.update(choices=choices, value=side) for side in kept_ones]

    given = form.inputs | asked.inputs | {ours, other, visit, measure}
    outputs = [verb.status, keys, about, parts, heat, tensor, lines, bars, table, download, scores]
    pressed = verb.go.click(compare, given, outputs, trigger_mode="once", **AT_ONCE)
    begun, heard = [asking.go.click, prompt.submit], [asking.status, *answers]
    questioned = gr.on(begun, ask_both, {prompt, keys}, heard, trigger_mode="once", **AT_ONCE)
    verb.governs([pressed])
    asking.governs([questioned])
    history.noted.then(listed, [visit, ours, other], [ours, other], **AT_ONCE)
    heat.select(told(clicked), keys, tensor, **AT_ONCE)
    show = told(lambda names, name: plots_compare.two_spectra(kept(names), name or "") if names else gr.skip())
    tensor.change(show, [keys, tensor], lines, trigger_mode="always_last", **AT_ONCE)
    redraw = told(lambda names, how: plots_compare.difference_map(kept(names), how) if names else gr.skip())
    measure.input(redraw, [keys, measure], heat, **AT_ONCE)


def _distance(comparison: Comparison, name: str) -> float:
    return next(layer.distance for layer in comparison.layers if layer.name == name)


def _about(runs: list[Run]) -> str:
    return "\n\n".join(f"**{label}**: {plain(described_recipe(run.recipe))}" for label, run in zip("AB", runs))


def _together(one: Recipe, other: Recipe) -> Recipe:
    """A recipe with the experts of both, so that both are scored on all their tasks."""
    sources = {expert.source: expert for expert in (*one.experts, *other.experts)}
    return replace(one, experts=tuple(sources.values()))
