"""The tab of the merge itself: make the merge, see how well it does, take it home."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mergelab.lab.lab import Lab, Run
from mergelab.lab.own import own_tasks
from mergelab.lab.repair import RepairLab
from mergelab.lab.saved import zipped
from mergelab.markdown import code, plain
from mergelab.method import METHODS
from mergelab.page.form import Form
from mergelab.page.history import History, draw_history, settings_in_words
from mergelab.page.numbers import frame_of
from mergelab.page.panel import PlotlyPanel
from mergelab.page.push import draw_push
from mergelab.page.report_buttons import draw_report
from mergelab.page.telling import AT_ONCE, job, running, saying, told
from mergelab.plots.parts import empty
from mergelab.plots.scores import board_bars
from mergelab.scores.scoreboard import BASE, MERGED, REPAIRED, Board
from mergelab.scores.scoring import mean_score
from mergelab.step import Step, relayed

LOOK = (
    "Exact match on held-out prompts that no model saw in training. Look at the gap between a merged bar and its "
    "expert's: that is what merging cost on this task. A merged bar below the base's means that merging did harm. "
    "The thin lines are 95 % confidence intervals."
)
NOTHING = "Nothing is merged yet. Press **Merge**, below the recipe."
UNSCORED = "Scores appear here after a merge of bundled experts."
NOT_SCORED = "Scores are for bundled experts; ask this merge instead."
# A tab that was never opened does not always open when it is told to, while the page draws something else.
SHOW = """() => {
  if (!document.getElementById('merged-about'))
    [...document.querySelectorAll('#bench [role=tab]')].find(tab => tab.textContent.trim() === 'Merge').click()
  const tabs = document.querySelector('#bench .tabs')
  if (innerWidth < 900 || tabs.getBoundingClientRect().top < 0) tabs.scrollIntoView({behavior: 'smooth'})
}"""
HISTORY = ["method", "settings", "experts", "mean exact match", "sha256"]


def draw_merge_tab(lab: Lab, repair: RepairLab, form: Form, tabs: gr.Tabs) -> tuple[gr.State, History]:
    """Draw the tab and wire Merge. Returns the state with the key of the newest run ('' before the first), and the
    history of the visit."""
    merged, past = gr.State(""), gr.State([])
    about = gr.Markdown(NOTHING, elem_id="merged-about")
    bars = PlotlyPanel(empty(UNSCORED), label="Scores", elem_id="scores", height=320)
    gr.Markdown(LOOK, elem_classes="ml-look")
    repaired_too = gr.Checkbox(
        False,
        label="Score it repaired for each task, too",
        info="One merged body, a scale and a shift per channel for each task: see the Repair tab.",
        elem_id="repaired-too",
    )
    history = gr.Dataframe(
        headers=HISTORY, value=[], label="Merges of this visit, newest first", interactive=False, elem_id="history"
    )
    visit = draw_history(lab, form, merged, history)
    whole = gr.DownloadButton("Download the merged model (zip)", interactive=False, elem_id="download")
    draw_push(lab, merged, form.status)
    draw_report(lab, merged, form.stop)
    with gr.Accordion("Its files, one by one: weights, recipe, report …", open=False):
        files = gr.File(label="Files of the merged model", file_count="multiple", interactive=False, elem_id="files")
    with gr.Accordion("Report: a row per module and expert", open=False) as report:
        table = gr.Dataframe(label="Facts of the merge", interactive=False, max_height=420, elem_id="merged-table")

    @job(form.status, "Merging")
    def merge(data: dict) -> Iterator[Step | dict]:
        run = yield from lab.merge(form.recipe(data))
        made, can_score = told_of(run, Board(), data[past]), bool(own_tasks(run.recipe))
        yield {tabs: gr.Tabs(selected="merge"), merged: run.folder.parent.name, **made, **downloads(run)}
        yield {bars: empty(UNSCORED if can_score else NOT_SCORED)}
        board = yield from relayed(lab.scores(run), so_far)
        yield {history: made[history]}  # again: its tab was new before
        if data[repaired_too]:
            for score in repair.repaired_scores(run):
                board = board.with_score(REPAIRED, score)
                yield so_far(Step(len(board.of(REPAIRED)), len(board.tasks), f"repaired · {score.task}", board))
        lab.noted(run, board)
        said = f"Merged {len(run.report.layers)} tensors in {run.report.seconds:.1f} s."
        yield {
            form.status: saying(" ".join([said, *run.report.notes]), "good"),
            **told_of(run, board, data[past]),
        }

    def so_far(step: Step) -> dict[Any, Any]:
        said = {form.status: running("Merged. Scoring", step)}
        return said | {bars: board_bars(step.made)} if step.made else said

    def told_of(run: Run, board: Board, before: list) -> dict[Any, Any]:
        lines = [_line(run, board), *before]
        return {about: _about(run, board), past: lines, history: lines}

    def downloads(run: Run) -> dict[Any, Any]:
        paths = sorted(str(path) for path in run.folder.iterdir())
        return {
            whole: gr.DownloadButton(value=str(zipped(run.folder)), interactive=True),
            files: paths,
            table: frame_of(run.report.table()),
        }

    def rows(key: str) -> Any:
        """The table when it is opened: one that was never drawn takes no update."""
        return frame_of(lab.run_named(key).report.table()) if key else gr.skip()

    report.expand(told(rows), merged, table, **AT_ONCE)
    outputs = [form.status, merged, tabs, about, bars, past, history, whole, files, table]
    pressed = form.merge.click(merge, form.inputs | {past, repaired_too}, outputs, trigger_mode="once", **AT_ONCE)
    pressed.success(None, None, None, js=SHOW)
    form.verb.governs([pressed], kept="A merge that was finished is kept; nothing half-made is.")
    return merged, visit


def described(run: Run) -> str:
    """A run in one line of Markdown: method, settings, experts."""
    title = METHODS[run.recipe.method].title
    return f"{title} ({plain(settings_in_words(run.recipe))}) of {plain(', '.join(run.recipe.names))}"


def _about(run: Run, board: Board) -> str:
    report, scored = run.report, f"{_verdict(board)}\n\n" if board.scores else ""
    skipped = "".join(f"\n- not merged: {code(name)}: {plain(why)}" for name, why in report.skipped.items())
    equal = sum(bool(layer.equal_to_base) for layer in report.layers)
    same = f" In {equal} tensors some expert equals the base." if equal else ""
    made = f"{len(report.layers)} tensors in {report.seconds:.1f} s on {report.device}.{same}"
    return f"## {described(run)}\n{scored}{made} sha256: `{run.sha256}`{skipped}"


def _verdict(board: Board) -> str:
    """What the merge gets right, beside what its experts and the base do."""
    masters = [board.scores[board.master(task) or "", task] for task in board.tasks]
    merge, experts, base = map(mean_score, (board.of(MERGED), masters, board.of(BASE)))
    count = sum(len(score.amounts) for score in board.of(MERGED))
    sure = f"(95 %: {merge.low:.1%} to {merge.high:.1%})"
    repaired = f", repaired {mean_score(board.of(REPAIRED)).value:.1%}" if board.of(REPAIRED) else ""
    beside = f"its experts, each on its own task, {experts.value:.1%}; the base {base.value:.1%}"
    right = f"**Of {count} prompts the merge answers {merge.value:.1%} right** {sure}{repaired}"
    return f"{right}; {beside}. *Try prompts* asks it."


def _line(run: Run, board: Board) -> list[Any]:
    return [
        METHODS[run.recipe.method].title,
        settings_in_words(run.recipe),
        ", ".join(run.recipe.names),
        f"{mean_score(board.of(MERGED)).value:.1%}" if board.scores else "–",
        run.sha256[:12],
    ]
