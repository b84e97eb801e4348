"""The scoreboard: base, experts and the newest merge on the bundled tasks, or on the user's own prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mergelab.lab.lab import Lab, saved_table
from mergelab.markdown import plain
from mergelab.page.form import Form
from mergelab.page.panel import PlotlyPanel
from mergelab.page.telling import HEAVY, LIGHT, PRIVATE, job, saying, stopped
from mergelab.plots import scores as plots_scores
from mergelab.plots import spectra as plots
from mergelab.scores.questions import MEASURES, Questions, questions_from, questions_in
from mergelab.scores.scoreboard import Board
from mergelab.step import Step
from mergelab.table import cell

BUNDLED, OWN = "the bundled tasks", "my own prompts"
LOOK = (
    "The thin lines are 95 % confidence intervals: where two of them overlap by much, do not trust the difference. "
    "Look at the last group: a merged bar at the height of the experts' would mean that merging cost nothing."
)
EXAMPLE = "french: 21 = => vingt et un\nenglish: 21 = => twenty-one\nmorse: 21 = => ..--- .----"
HOW = (
    "One line each: `prompt => answer`, and `=> task` if you like. A file may be .txt (the same lines), .csv with the "
    "columns prompt, answer, task, or .jsonl with those keys. For perplexity a line may be a bare text. A right answer "
    "is the very text, in the tokens that the tokenizer makes of it."
)
EMPTY = "Nothing is scored yet. Press Score: base and experts are scored, and the newest merge, if there is one."


@dataclass(frozen=True)
class Asked:
    """The widgets that say what is asked; other tabs ask the same."""

    what: gr.Radio
    text: gr.Textbox
    file: gr.File
    measure: gr.Radio
    ends: gr.Checkbox

    @property
    def inputs(self) -> set:
        """All that the questions are read from."""
        return {self.what, self.text, self.file, self.measure, self.ends}

    def questions(self, data: Mapping[Any, Any]) -> list[Questions] | None:
        """The user's own questions; None for the bundled tasks. MergeError names the line that is wrong."""
        if data[self.what] != OWN:
            return None
        how = data[self.measure], bool(data[self.ends])
        return questions_in(data[self.file], *how) if data[self.file] else questions_from(data[self.text], "txt", *how)


def draw_scores_tab(lab: Lab, form: Form, merged: gr.State) -> Asked:
    """Draw the tab; wire Score and Stop. Returns the widgets that say what is asked."""
    asked = _draw_asked()
    everyone = gr.Checkbox(False, label="Every expert on every task", info="Shows what each expert has forgotten.")
    with gr.Row():
        score = gr.Button("Score", variant="primary", min_width=100, elem_id="score")
        stop = gr.Button("Stop", min_width=100, elem_id="stop-scoring")
    bars = PlotlyPanel(plots.empty(EMPTY), label="Scoreboard", elem_id="board", height=360)
    gr.Markdown(LOOK, elem_classes="ml-look")
    about = gr.Markdown("", elem_id="board-about")
    with gr.Accordion("All numbers", open=False):
        table = gr.Dataframe(label="A row per model and task", interactive=False, max_height=420, elem_id="board-table")
        download = gr.DownloadButton("These numbers (CSV)", size="sm", interactive=False, elem_id="board-csv")

    @job(form.status, "Scoring")
    def scores(data: dict) -> Iterator[Step | dict]:
        run = lab.run_named(data[merged]) if data[merged] else None
        recipe = run.recipe if run else form.recipe(data)
        board = Board((), (), {})
        merges = {"merged": run.folder} if run else {}
        work = lab.scoreboard(recipe, merges, asked.questions(data), bool(data[everyone]))
        for step in work:
            yield step
            if step.made:
                board = step.made
                yield {bars: plots_scores.board_bars(board)}
        yield {form.status: saying(_said(board), "good"), about: _about(board), **_numbers(board)}

    def _numbers(board: Board) -> dict[Any, Any]:
        headers, rows = board.table()
        shown = {"headers": headers, "data": [list(map(cell, row)) for row in rows]}
        path = saved_table(lab, "scores", headers, rows)
        return {table: shown, download: gr.DownloadButton(value=path, interactive=True)}

    outputs = [form.status, bars, about, table, download]
    given = form.inputs | asked.inputs | {merged, everyone}
    pressed = score.click(scores, given, outputs, trigger_mode="once", **HEAVY)
    for button in (stop, form.stop):
        button.click(None, None, None, cancels=[pressed], **PRIVATE)
    pressed.then(stopped, form.status, form.status, **LIGHT)
    return asked


def _draw_asked() -> Asked:
    what = gr.Radio([BUNDLED, OWN], value=BUNDLED, label="Score on", elem_id="asked")
    with gr.Column(visible=False, elem_id="own-prompts") as own:
        text = gr.Textbox(EXAMPLE, lines=5, max_lines=14, label="Prompts and answers", elem_id="own-text")
        gr.Markdown(HOW, elem_classes="ml-look")
        file = gr.File(
            label="… or a file of them, instead of the lines above",
            file_types=[".txt", ".csv", ".jsonl"],
            height=110,
            elem_id="own-file",
        )
        with gr.Row():
            measure = gr.Radio(list(MEASURES), value=MEASURES[0], label="Measure", min_width=200)
            ends = gr.Checkbox(
                True, label="The answer must end there", info="Off: right if the model's text begins with the answer."
            )
    what.change(lambda choice: gr.update(visible=choice == OWN), what, own, **LIGHT)
    return Asked(what, text, file, measure, ends)


def _said(board: Board) -> str:
    count = sum(len(score.amounts) for score in board.scores.values())
    return f"{len(board.models)} models scored on {len(board.tasks)} tasks, {count} answers in all."


def _about(board: Board) -> str:
    """The normalised averages, in one sentence."""
    shares = {name: board.normalised(name) for name in board.models if name not in board.experts}
    known = [f"**{plain(name)}** {share:.1%}" for name, share in shares.items() if share is not None]
    if not known:
        return "No normalised average: some task is not scored by all, or its expert has nothing right."
    masters = [plain(f"{task} by {board.master(task)}") for task in board.tasks if board.master(task) != task]
    by = f" Measured are {', '.join(masters)}." if masters else ""
    return f"Normalised average, 100 % being what each task's own expert reaches: {', '.join(known)}.{by}"
