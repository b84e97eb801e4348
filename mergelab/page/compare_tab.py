"""Two merges side by side: where they differ, their spectra, their scores, and their answers to one prompt."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import START, Lab, Run, by_method, comparison_key
from mergelab.lab.own import own_questions
from mergelab.lab.saved import saved_table
from mergelab.lab.shipped import start_comparison, start_pair
from mergelab.markdown import plain
from mergelab.page.asked import Asked
from mergelab.page.form import Form
from mergelab.page.freshness import EXAMPLE, draw_freshness
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
UNSCORED = "Both scores appear here, where the experts have bundled tasks or prompts are given in Scores."
OPENING = "What is shown is an example, made in advance. Choose two recipes: what is not merged yet is merged first."


def draw_compare_tab(lab: Lab, form: Form, history: History, asked: Asked, tab: gr.Tab) -> None:
    """Draw the tab; wire Compare, Ask, Stop, and what chooses a tensor."""
    visit, keys = history.visit, gr.State([])  # keys: of the two runs that are compared; none: the example
    start, first, pair = Recipe.read(START), start_comparison(), start_pair()
    example = start, by_method(start, "linear")
    worst = _furthest(first)
    with gr.Row():
        ours = gr.Dropdown([FORM, PLAIN], value=FORM, label="A", scale=2, min_width=220, elem_id="compare-a")
        other = gr.Dropdown([FORM, PLAIN], value=PLAIN, label="B", scale=2, min_width=220, elem_id="compare-b")
    verb = draw_verb("Compare", "compare", OPENING)
    fresh = draw_freshness(form, tab, "Compare", start)
    about = gr.Markdown(f"{EXAMPLE}\n\n{_about(example)}", elem_id="compared")
    with gr.Row():
        measure = gr.Radio(
            list(plots_compare.MEASURES), value="distance", label="Show", elem_id="measure", min_width=160
        )
        tensor = gr.Dropdown(list(first.spectra), value=worst, label="Matrix", elem_id="compare-module", min_width=220)
    shown = plots_compare.difference_map(first, "distance")
    heat = PlotlyPanel(shown, label="Difference", elem_id="difference", height=250)
    gr.Markdown(LOOK_MAP, elem_classes="ml-look")
    shown = plots_compare.two_spectra(first, worst)
    lines = PlotlyPanel(shown, label="Both spectra", elem_id="both-spectra", height=340)
    gr.Markdown(LOOK_SPECTRA, elem_classes="ml-look")
    shown = plots_scores.board_bars(pair)
    bars = PlotlyPanel(shown, label="Both scores", elem_id="both-scores", height=340)
    gr.Markdown(LOOK_BARS, elem_classes="ml-look")
    with gr.Accordion("All numbers", open=False):
        numbers, path = frame_and_file(lab, "differences", first.table())
        table = gr.Dataframe(
            numbers, label="A row per tensor", interactive=False, max_height=420, elem_id="compare-table"
        )
        with gr.Row():
            download = gr.DownloadButton("The differences (CSV)", value=path, size="sm", elem_id="compare-csv")
            path = saved_table(lab, "compared-scores", *pair.table())
            scores = gr.DownloadButton("The scores (CSV)", value=path, size="sm")
    prompt = gr.Textbox("french: 7394 =", label="Ask both", elem_id="ask-both-prompt")
    asking = draw_verb("Ask both", "ask-both")
    with gr.Row():
        answers = [
            gr.Textbox(label=label, lines=3, interactive=False, min_width=200, elem_id=f"both-{label.lower()}")
            for label in "AB"
        ]

    @job(verb.status, "Comparing")
    def compare(data: dict) -> Iterator[Step | dict]:
        questions = asked.questions(data)  # refused now, if they are
        runs = yield from _both(run_of(label, data) for label in (data[ours], data[other]))
        if runs[0].folder == runs[1].folder or runs[0].recipe == runs[1].recipe:
            raise MergeError("A and B are the same recipe. Choose two that differ, or change the form.")
        comparison = yield from lab.compare(*runs)
        of_form = {data[ours], data[other]} & {FORM, PLAIN}
        yield fresh.updates(form.recipe(data) if of_form else None)
        yield {keys: [run.folder.parent.name for run in runs], about: _about([run.recipe for run in runs])}
        yield pictures(comparison, data[measure]) | dict.fromkeys(answers, "") | {asking.status: saying("")}
        both = _together(*(run.recipe for run in runs))
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
        worst = _furthest(comparison)
        return {
            heat: plots_compare.difference_map(comparison, show),
            tensor: gr.update(choices=list(comparison.spectra), value=worst),
            lines: plots_compare.two_spectra(comparison, worst or ""),
            bars: empty(UNSCORED),
            scores: gr.DownloadButton(interactive=False),
            measure: show,
            table: numbers,
            download: gr.DownloadButton(value=path, interactive=True),
        }

    @job(asking.status, "Answering")
    def ask_both(data: dict) -> Iterator[Step | dict]:
        runs = [lab.run_named(name) for name in data[keys]] or (yield from _both(map(lab.merged, example)))
        folders = [run.folder for run in runs]
        yield dict.fromkeys(answers, "")
        yield Step(0, len(folders), "loading the models")
        for texts in lab.answers(folders, data[prompt] or ""):
            yield dict(zip(answers, texts))
        yield {asking.status: saying("Both have answered.", "good")}

    def kept(names: list[str]) -> Comparison:
        if not names:
            return first
        runs = [lab.run_named(name) for name in names]
        if len(runs) != 2 or comparison_key(*runs) not in lab.comparisons:
            raise MergeError("That comparison is not kept any more. Press Compare again.")
        return lab.comparisons[comparison_key(*runs)]

    def clicked(names: list[str], event: gr.EventData) -> Any:
        name = str(getattr(event, "name", ""))
        return name if name in kept(names).spectra else gr.skip()

    def listed(entries: list[Past], left: str, right: str) -> list[Any]:
        choices = [FORM, PLAIN, *(entry.label for entry in entries)]
        kept_ones = (side if side in choices else other for side, other in ((left, FORM), (right, PLAIN)))
        return [gr.update(choices=choices, value=side) for side in kept_ones]

    given = form.inputs | asked.inputs | {ours, other, visit, measure}
    outputs = [verb.status, fresh.made, fresh.line, keys, about, heat, tensor, lines, bars, table, download, scores]
    outputs += [measure, asking.status, *answers]
    pressed = verb.go.click(compare, given, outputs, trigger_mode="once", **AT_ONCE)
    begun, heard = [asking.go.click, prompt.submit], [asking.status, *answers]
    questioned = gr.on(begun, ask_both, {prompt, keys}, heard, trigger_mode="once", **AT_ONCE)
    verb.governs([pressed], kept="What was merged is kept, and so is the comparison, if it was finished.")
    asking.governs([questioned])
    history.noted.then(listed, [visit, ours, other], [ours, other], **AT_ONCE)
    heat.select(told(clicked), keys, tensor, **AT_ONCE)
    show = told(lambda names, name: plots_compare.two_spectra(kept(names), name or ""))
    tensor.change(show, [keys, tensor], lines, trigger_mode="always_last", **AT_ONCE)
    redraw = told(lambda names, how: plots_compare.difference_map(kept(names), how))
    measure.input(redraw, [keys, measure], heat, **AT_ONCE)


def _both(jobs: Iterable[Generator[Step, None, Run]]) -> Generator[Step, None, list[Run]]:
    """One run after the other."""
    runs = []
    for made in jobs:
        runs.append((yield from made))
    return runs


def _furthest(comparison: Comparison) -> str | None:
    """The matrix in which the two differ most, of those whose spectra there are."""
    shown = [layer for layer in comparison.layers if layer.name in comparison.spectra]
    return max(shown, key=lambda layer: layer.distance).name if shown else None


def _about(recipes: Sequence[Recipe]) -> str:
    return "\n\n".join(f"**{label}**: {plain(described_recipe(recipe))}" for label, recipe in zip("AB", recipes))


def _together(one: Recipe, other: Recipe) -> Recipe:
    """A recipe with the experts of both, so that both are scored on all their tasks."""
    sources = {expert.source: expert for expert in (*one.experts, *other.experts)}
    return replace(one, experts=tuple(sources.values()))
