"""The scoreboard: base, experts, the form's recipe and other methods on the bundled tasks, or on one's own prompts."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from mergelab.lab.lab import START, Lab, by_method
from mergelab.lab.own import questions_for
from mergelab.lab.shipped import start_board
from mergelab.method import METHODS
from mergelab.page.asked import Asked, draw_asked
from mergelab.page.form import Form
from mergelab.page.freshness import EXAMPLE, draw_freshness
from mergelab.page.numbers import frame_and_file
from mergelab.page.panel import PlotlyPanel
from mergelab.page.telling import AT_ONCE, job, saying
from mergelab.page.verbs import draw_verb
from mergelab.plots import scores as plots_scores
from mergelab.recipes.recipe import Recipe
from mergelab.scores.scoreboard import Board
from mergelab.scores.verdict import board_verdict
from mergelab.step import Step
from mergelab.words import counted

MOST = 8  # other methods at once: as many merges are made, and kept
OPENING = "What is shown is an example, made in advance. Score makes it anew, with the recipe in the form."
SO_FAR = "**{} so far.** Who is best is told when the board is complete."
KEPT = "The scores that it had finished are shown."
LOOK_TABLE = (
    "A row is a model, a column a task. **Look down a column** for the merge that does best (★), and along a merge's "
    "row for the task on which it loses most. The base says what no merging at all would give."
)
LOOK_BARS = (
    "The same as bars. The thin lines are 95 % confidence intervals: where two of them overlap by much, do not trust "
    "the difference. A merged bar at the height of the experts' would mean that merging cost nothing."
)


def draw_scores_tab(lab: Lab, form: Form, tab: gr.Tab) -> Asked:
    """Draw the tab; wire Score and Stop. Returns the widgets that say what is asked."""
    first = start_board()
    methods = gr.Dropdown(
        [(method.title, name) for name, method in METHODS.items()],
        value=_methods(first),
        multiselect=True,
        max_choices=MOST,
        label="Beside the recipe in the form, by these methods, too",
        info="The same experts; each method with the settings that the form begins with.",
        elem_id="rivals",
    )
    asked = draw_asked()
    everyone = gr.Checkbox(False, label="Every expert on every task", info="Shows what each expert has forgotten.")
    verb = draw_verb("Score", "score", OPENING)
    fresh = draw_freshness(form, tab, "Score", Recipe.read(START))
    grid = PlotlyPanel(plots_scores.board_grid(first), label="Who wins where", elem_id="board-grid", height=330)
    gr.Markdown(LOOK_TABLE, elem_classes="ml-look")
    about = gr.Markdown(f"{EXAMPLE}\n\n{board_verdict(first)}", elem_id="board-about")
    bars = PlotlyPanel(plots_scores.board_bars(first), label="Scoreboard", elem_id="board", height=360)
    gr.Markdown(LOOK_BARS, elem_classes="ml-look")
    with gr.Accordion("All numbers", open=False):
        shown, path = frame_and_file(lab, "scores", first.table())
        table = gr.Dataframe(
            shown, label="A row per model and task", interactive=False, max_height=420, elem_id="board-table"
        )
        download = gr.DownloadButton("These numbers (CSV)", value=path, size="sm", elem_id="board-csv")

    @job(verb.status, "Scoring")
    def score(data: dict) -> Iterator[Step | dict]:
        recipe = form.recipe(data)
        questions = questions_for(recipe, asked.questions(data))
        merges = yield from _merged(lab, recipe, data[methods] or [])
        board = Board()
        for step in lab.scoreboard(recipe, merges, questions, bool(data[everyone])):
            yield step
            if step.made:
                board = step.made
                yield drawn(board) | fresh.updates(recipe) | {about: SO_FAR.format(counted(len(board.scores), "score"))}
        yield drawn(board) | {verb.status: saying(_said(board), "good"), about: board_verdict(board)}

    def drawn(board: Board) -> dict[Any, Any]:
        pictures = {grid: plots_scores.board_grid(board), bars: plots_scores.board_bars(board)}
        return pictures | dict(zip((table, download), frame_and_file(lab, "scores", board.table())))

    outputs = [verb.status, fresh.made, fresh.line, grid, bars, about, table, download]
    given = form.inputs | asked.inputs | {methods, everyone}
    verb.governs([verb.go.click(score, given, outputs, trigger_mode="once", **AT_ONCE)], kept=KEPT)
    return asked


def _merged(lab: Lab, recipe: Recipe, methods: list[str]) -> Generator[Step, None, dict[str, Path]]:
    """The folder of the recipe's merge and of the other methods', by title; merged now if they are not kept."""
    folders = {}
    for title, wanted in _recipes(recipe, methods).items():
        folders[title] = (yield from lab.merged(wanted)).folder
    return folders


def _recipes(recipe: Recipe, methods: list[str]) -> dict[str, Recipe]:
    """What is scored, by title: the recipe, and the other methods; its own method, too, where it has other settings."""
    title, others = METHODS[recipe.method].title, {METHODS[name].title: by_method(recipe, name) for name in methods}
    if others.get(title, recipe) == recipe:
        return {title: recipe} | others
    return {f"{title}, as in the form": recipe} | others


def _methods(board: Board) -> list[str]:
    """The methods on a board, but for the first, which is the form's."""
    return [name for name, method in METHODS.items() if method.title in board.merges[1:]]


def _said(board: Board) -> str:
    count = sum(len(score.amounts) for score in board.scores.values())
    models, tasks = counted(len(board.models), "model"), counted(len(board.tasks), "task")
    return f"{models} scored on {tasks}, {count} answers in all."
