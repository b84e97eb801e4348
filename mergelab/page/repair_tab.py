"""The Repair tab: why a merge of unrelated networks fails, and what brings it back, told from left to right."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mergelab import repair_plots as plots
from mergelab.lab import Step
from mergelab.lab_repair import FEWEST, MODES, MOST, PRESETS, RepairLab, lines_in, story
from mergelab.outcome import Outcome, Trial
from mergelab.page.form import Form
from mergelab.page.panel import PlotlyPanel
from mergelab.page.repair_words import (
    HOME,
    LOOK_CHANNELS,
    LOOK_MATCHING,
    LOOK_SCORES,
    LOOK_SITES,
    LOOK_VARIANCE,
    OPENING,
    about,
    name_of_merge,
    verdict,
)  # fmt: skip
from mergelab.page.telling import HEAVY, LIGHT, PRIVATE, job, saying, stopped, told

TARGETS = [("TACT: each task's own expert", "task"), ("REPAIR: the mean of all experts", "mean")]
ALIGNMENTS = [(name if name != "best" else "the best of these, by calibration", name) for name in ALIGN]
WHOSE = [("before repair", "merged"), ("after", "repaired")]


def draw_repair_tab(lab: RepairLab, form: Form) -> gr.Textbox:
    """Draw the tab; wire Run, Stop, clicks and exports. Returns the field of the user's own prompts."""
    first, key = story(), gr.State("")
    names = list(STORIES)
    with gr.Row(elem_id="repair-steps"):
        with gr.Column(min_width=220):
            what = gr.Dropdown(names, value=names[0], label="1 · Merge", elem_id="story", info=about(names[0]))
        with gr.Column(min_width=220):
            align = gr.Dropdown(
                ALIGNMENTS, value=STORIES[names[0]][1], label="2 · Align the experts first", elem_id="align",
                info="By a permutation that changes no network, only the order of its neurons.",
            )  # fmt: skip
        with gr.Column(min_width=220):
            target = gr.Dropdown(
                TARGETS, value="task", label="3 · Repair towards", elem_id="target",
                info="A scale and a shift per channel, fitted in one pass.",
            )  # fmt: skip
        with gr.Column(min_width=220):
            samples = gr.Slider(
                FEWEST, MOST, value=32, step=4, label="Calibration samples", elem_id="samples",
                info="A task. Bundled are 64 prompts, or 256 pictures.",
            )  # fmt: skip
    with gr.Accordion("More settings, and your own prompts", open=False):
        with gr.Row():
            mode = gr.Dropdown([(f"{k}: {v}", k) for k, v in MODES.items()], value="affine", label="Mode")
            where = gr.Dropdown(
                list(PRESETS), value="foldable", label="Sites", allow_custom_value=True,
                info="A preset, or names of modules with |in or |out and commas between.",
            )  # fmt: skip
        with gr.Row():
            heads = gr.Checkbox(True, label="Own heads", info="A classifier keeps each expert's own last layer.")
            without = gr.Checkbox(
                False, label="Leave one out, too", info="Score also the merge without the task's expert.", elem_id="without"
            )  # fmt: skip
        lines = gr.Textbox(
            "", lines=3, label="Prompts of your own, one a line (language models)", elem_id="own-prompts",
            info="Each expert answers them itself, and is measured while it does: prompts alone would hurt.",
        )  # fmt: skip
        file = gr.File(label="… or a .txt or .jsonl file of them", file_types=[".txt", ".jsonl"], height=90)
    with gr.Row():
        run = gr.Button("Run", variant="primary", min_width=100, elem_id="run-repair")
        stop = gr.Button("Stop", min_width=100, elem_id="stop-repair")
    status = gr.HTML(saying(OPENING), elem_id="repair-status")
    with gr.Row():
        with gr.Column(min_width=300, scale=3):
            variance = PlotlyPanel(_variance(first), label="Variance", elem_id="variance", height=330)
            gr.Markdown(LOOK_VARIANCE, elem_classes="ml-look")
        with gr.Column(min_width=300, scale=3):
            bars = PlotlyPanel(_bars(first), label="Accuracy", elem_id="repaired-scores", height=330)
            gr.Markdown(LOOK_SCORES, elem_classes="ml-look")
    said = gr.Markdown(verdict(first), elem_id="verdict")
    matching = PlotlyPanel(_matching(first), label="Matching", elem_id="matching", height=260)
    gr.Markdown(LOOK_MATCHING, elem_classes="ml-look")
    with gr.Row():
        whose = gr.Radio(
            WHOSE, value="merged", label="Variance ratio per site and task", elem_id="whose", scale=1, min_width=260
        )
        site = gr.Dropdown(
            _sites(first), value=_site(first), label="Site", elem_id="site", allow_custom_value=True, scale=1, min_width=260
        )  # fmt: skip
    with gr.Row():
        with gr.Column(min_width=300, scale=3):
            heat = PlotlyPanel(plots.ratio_heatmap(first.reports), label="Sites", elem_id="site-heat", height=300)
            gr.Markdown(LOOK_SITES, elem_classes="ml-look")
        with gr.Column(min_width=300, scale=2):
            dots = PlotlyPanel(
                plots.deviations(first.reports, _site(first)), label="Channels", elem_id="dots", height=300
            )
            gr.Markdown(LOOK_CHANNELS, elem_classes="ml-look")
    with gr.Accordion("All numbers", open=False):
        scores = gr.Dataframe(_shown(first.score_table()), label="Scores", interactive=False)
        table = gr.Dataframe(_shown(first.table()), label="A row per task and site", interactive=False, max_height=380)
        with gr.Row():
            files = lab.saved(first)
            downloads = [
                gr.DownloadButton(f"{label}", value=str(path), size="sm")
                for label, path in zip(("All of it (JSON)", "Scores (CSV)", "Sites (CSV)"), files)
            ]
    with gr.Accordion("Take the repaired models home", open=False):
        gr.Markdown(HOME, elem_classes="ml-look")
        with gr.Row():
            fold = gr.Button("Make folded checkpoints", size="sm", elem_id="make-folded")
            beside = gr.Button("Make sidecars", size="sm", elem_id="make-sidecars")
        made = gr.File(label="Zips", file_count="multiple", interactive=False, elem_id="repaired-files")

    pictures = [variance, bars, said, matching, heat, dots, site, scores, table, *downloads]

    def drawn(outcome: Outcome, data: dict) -> dict[Any, Any]:
        """Every picture of an outcome."""
        shown = data[site] if data[site] in [one.site for one in outcome.reports[0].channels] else _site(outcome)
        return {
            variance: _variance(outcome),
            bars: _bars(outcome),
            said: verdict(outcome),
            matching: _matching(outcome),
            heat: plots.ratio_heatmap(outcome.reports, data[whose]),
            dots: plots.deviations(outcome.reports, shown),
            site: gr.update(choices=_sites(outcome), value=shown),
            scores: _shown(outcome.score_table()),
            table: _shown(outcome.table()),
        }

    @job(status, "Repairing")
    def repair(data: dict) -> Iterator[Step | dict]:
        recipe = form.recipe(data) if data[what] == LEFT else STORIES[data[what]][0]
        trial = Trial(
            recipe, data[target], data[mode], data[where], int(data[samples]), own_heads=bool(data[heads]),
            without=bool(data[without]), lines=lines_in(data[lines], data[file]),
        )  # fmt: skip
        end = yield from _followed(lab.tell(trial, data[align]), lambda outcome: drawn(outcome, data))
        sentence = f"{len(end.outcome.reports)} tasks repaired in {end.outcome.seconds:.0f} s."
        paths = map(str, lab.saved(end.outcome))
        yield {
            status: saying(" ".join([sentence, *end.outcome.notes]), "good"),
            key: end.key,
            made: None,
            **drawn(end.outcome, data),
            **dict(zip(downloads, paths)),
        }

    def exporting(sidecar: bool) -> Any:
        @job(status, "Writing")
        def write(data: dict) -> Iterator[Step | dict]:
            paths = yield from lab.written(data[key], sidecar)
            yield {made: [str(path) for path in paths], status: saying(f"{len(paths)} files are below.", "good")}

        return write

    def chosen(name: str) -> tuple[Any, Any]:
        return gr.update(info=about(name)), STORIES[name][1]

    def clicked(key: str, event: gr.EventData) -> str:
        known = [one.site for one in lab.outcome(key).reports[0].channels]
        name = str(getattr(event, "name", ""))
        return name if name in known else known[0]

    given = form.inputs | {what, align, target, samples, mode, where, heads, without, lines, file, whose, site}
    pressed = run.click(repair, given, [status, key, made, *pictures], trigger_mode="once", **HEAVY)
    writes = [
        button.click(exporting(sidecar), {key}, [status, made], trigger_mode="once", **HEAVY)
        for button, sidecar in ((fold, False), (beside, True))
    ]
    stop.click(None, None, None, cancels=[pressed, *writes], **PRIVATE)
    for event in (pressed, *writes):
        event.then(stopped, status, status, **LIGHT)
    what.input(told(chosen), what, [what, align], **LIGHT)
    heat.select(told(clicked), key, site, **LIGHT)
    show_site = told(lambda key, name: plots.deviations(lab.outcome(key).reports, name))
    site.change(show_site, [key, site], dots, trigger_mode="always_last", **LIGHT)
    whose.change(told(lambda key, who: plots.ratio_heatmap(lab.outcome(key).reports, who)), [key, whose], heat, **LIGHT)
    return lines


def _followed(telling: Any, drawn: Any) -> Iterator[Step | dict]:
    """A job whose outcomes so far are drawn as they come; returns its result."""
    try:
        while True:
            news = next(telling)
            yield news if isinstance(news, Step) else drawn(news)
    except StopIteration as end:
        return end.value
    finally:
        telling.close()


def _variance(outcome: Outcome) -> dict:
    return plots.variance_ratio(outcome.reports, outcome.plain, outcome.theory, name_of_merge(outcome))


def _bars(outcome: Outcome) -> dict:
    return plots.repaired_bars(outcome.reports, outcome.tested, name_of_merge(outcome))


def _matching(outcome: Outcome) -> dict:
    return plots.matching(outcome.matching.objective, outcome.matching.before, outcome.matching.after)


def _site(outcome: Outcome) -> str:
    """The site that has lost most: where to look first."""
    channels = outcome.reports[0].channels if outcome.reports else ()
    return min(channels, key=lambda one: one.log2_ratio()).site if channels else ""


def _sites(outcome: Outcome) -> list[tuple[str, str]]:
    return [(plots.site_label(one.site), one.site) for one in outcome.reports[0].channels] if outcome.reports else []


def _shown(table: tuple[list[str], list[list[Any]]]) -> dict[str, Any]:
    headers, rows = table
    return {"headers": headers, "data": [[f"{c:.4g}" if isinstance(c, float) else c for c in row] for row in rows]}
