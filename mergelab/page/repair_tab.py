"""The Repair tab: why a merge of unrelated networks fails, and what brings it back, told from left to right."""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import gradio as gr

from mergelab.lab.repair import RepairLab, lines_in, story
from mergelab.page import repair_words as words
from mergelab.page.form import Form
from mergelab.page.numbers import frame_of
from mergelab.page.panel import PlotlyPanel
from mergelab.page.telling import AT_ONCE, job, saying, told
from mergelab.page.verbs import draw_verb
from mergelab.plots import repair as plots
from mergelab.repair import FEWEST, MODES, MOST, PRESETS
from mergelab.repair.outcome import Outcome, Trial
from mergelab.repair.stories import ALIGN, FORM, STORIES
from mergelab.step import Step, relayed

ALIGNMENTS = [(name if name != "best" else "the best of these, by calibration", name) for name in ALIGN]
TARGETS = [("its own expert (TACT)", "task"), ("the experts' mean (REPAIR)", "mean")]
WHOSE = [("before repair", "merged"), ("after", "repaired")]
FILES = ("All of it (JSON)", "Scores (CSV)", "Sites (CSV)")


def draw_repair_tab(lab: RepairLab, form: Form) -> gr.Textbox:
    """Draw the tab; wire Run, Stop, clicks and exports. Returns the field of the user's own prompts."""
    first, key = story(), gr.State("")
    asked = _Asked(form)
    verb = draw_verb("Run", "repair", words.OPENING)
    status = verb.status
    shown = _Shown(lab, first)
    with gr.Accordion("Take the repaired models home", open=False):
        gr.Markdown(words.HOME, elem_classes="ml-look")
        with gr.Row():
            fold = gr.Button("Make folded checkpoints", size="sm", elem_id="make-folded")
            beside = gr.Button("Make sidecars", size="sm", elem_id="make-sidecars")
        made = gr.File(label="Zips", file_count="multiple", interactive=False, elem_id="repaired-files")

    @job(status, "Repairing")
    def repair(data: dict) -> Iterator[Step | dict]:
        telling = lab.tell(asked.trial(data), data[asked.align])
        end = yield from _followed(telling, lambda outcome: shown.updates(outcome, data))
        said = words.summary(end.outcome)
        yield {
            status: saying(" ".join([said, *end.outcome.notes]), "good"),
            key: end.key,
            made: None,
            **shown.updates(end.outcome, data),
            **dict(zip(shown.files, map(str, lab.saved(end.outcome)))),
        }

    def writing(sidecar: bool) -> Callable:
        @job(status, "Writing")
        def write(data: dict) -> Iterator[Step | dict]:
            paths = yield from lab.written(data[key], sidecar)
            yield {made: [str(path) for path in paths], status: saying(f"Files to download: {len(paths)}.", "good")}

        return write

    given = asked.widgets | {shown.whose, shown.site}
    jobs = [verb.go.click(repair, given, [status, key, made, *shown.widgets], trigger_mode="once", **AT_ONCE)]
    for button, sidecar in ((fold, False), (beside, True)):
        jobs.append(button.click(writing(sidecar), {key}, [status, made], trigger_mode="once", **AT_ONCE))
    verb.governs(jobs)
    shown.wire()
    return asked.lines


class _Asked:
    """The widgets of a trial; reads them as one."""

    def __init__(self, form: Form):
        self.form, first = form, next(iter(STORIES))
        with gr.Row():
            with gr.Column(min_width=220):
                self.what = gr.Dropdown(
                    list(STORIES), value=first, label="1 · Merge", info=words.about(first), elem_id="story"
                )
            with gr.Column(min_width=220):
                self.align = gr.Dropdown(
                    ALIGNMENTS, value=STORIES[first][1], label="2 · Align first", info=words.ALIGN, elem_id="align"
                )
            with gr.Column(min_width=220):
                self.target = gr.Dropdown(
                    TARGETS, value="task", label="3 · Repair towards", info=words.TARGET, elem_id="target"
                )
            with gr.Column(min_width=220):
                self.samples = gr.Slider(
                    FEWEST, MOST, value=32, step=4, label="Samples", info=words.SAMPLES, elem_id="samples"
                )
        with gr.Accordion("More settings, and your own prompts", open=False):
            self._draw_rest()
        self.what.input(told(self._chosen), self.what, [self.what, self.align], **AT_ONCE)

    def _draw_rest(self) -> None:
        with gr.Row():
            modes = [(f"{name}: {sentence}", name) for name, sentence in MODES.items()]
            self.mode = gr.Dropdown(modes, value="affine", label="Mode")
            self.sites = gr.Dropdown(
                list(PRESETS), value="foldable", label="Sites", info=words.SITES, allow_custom_value=True
            )
        with gr.Row():
            self.heads = gr.Checkbox(True, label="Own heads", info=words.HEADS)
            self.without = gr.Checkbox(False, label="Leave one out, too", info=words.WITHOUT, elem_id="without")
        self.lines = gr.Textbox(
            "",
            lines=3,
            label="Prompts of your own, one a line (language models)",
            info=words.LINES,
            elem_id="own-prompts",
        )
        self.file = gr.File(label="… or a .txt or .jsonl file of them", file_types=[".txt", ".jsonl"], height=90)

    @property
    def widgets(self) -> set:
        """All that a trial is read from."""
        own = {self.what, self.align, self.target, self.samples, self.mode, self.sites, self.heads, self.without}
        return self.form.inputs | own | {self.lines, self.file}

    def trial(self, data: Mapping[Any, Any]) -> Trial:
        """The trial that the widgets say."""
        recipe = self.form.recipe(data) if data[self.what] == FORM else STORIES[data[self.what]][0]
        assert recipe
        return Trial(
            recipe,
            target=data[self.target],
            mode=data[self.mode],
            sites=data[self.sites],
            samples=int(data[self.samples]),
            own_heads=bool(data[self.heads]),
            without=bool(data[self.without]),
            lines=lines_in(data[self.lines], data[self.file]),
        )

    def _chosen(self, name: str) -> tuple[Any, str]:
        return gr.update(info=words.about(name)), STORIES[name][1]


class _Shown:
    """The pictures, sentences and tables of an outcome."""

    def __init__(self, lab: RepairLab, first: Outcome):
        self.now = gr.State(first)  # what is drawn, whole or so far
        with gr.Row():
            with gr.Column(min_width=300):
                self.variance = PlotlyPanel(_variance(first), label="Variance", elem_id="variance", height=340)
                gr.Markdown(words.LOOK_VARIANCE, elem_classes="ml-look")
            with gr.Column(min_width=300):
                self.bars = PlotlyPanel(_bars(first), label="Accuracy", elem_id="repaired-scores", height=340)
                gr.Markdown(words.LOOK_SCORES, elem_classes="ml-look")
        self.verdict = gr.Markdown(words.verdict(first), elem_id="repair-verdict")
        self.matching = PlotlyPanel(_matching(first), label="Matching", elem_id="matching", height=260)
        gr.Markdown(words.LOOK_MATCHING, elem_classes="ml-look")
        self._draw_sites(first)
        with gr.Accordion("All numbers", open=False):
            self.scores = gr.Dataframe(frame_of(first.score_table()), label="Scores", interactive=False)
            self.table = gr.Dataframe(
                frame_of(first.table()), label="A row per task and site", interactive=False, max_height=380
            )
            with gr.Row():
                paths = map(str, lab.saved(first))
                self.files = [gr.DownloadButton(label, value=path, size="sm") for label, path in zip(FILES, paths)]

    def _draw_sites(self, first: Outcome) -> None:
        with gr.Row():
            self.whose = gr.Radio(WHOSE, value="merged", label="Variance ratio", elem_id="whose", min_width=260)
            self.site = gr.Dropdown(
                _sites(first), value=_site(first), label="Site", elem_id="site", allow_custom_value=True, min_width=260
            )
        with gr.Row():
            with gr.Column(min_width=300, scale=3):
                heat = plots.ratio_heatmap(first.reports)
                self.heat = PlotlyPanel(heat, label="Sites", elem_id="site-heat", height=300)
                gr.Markdown(words.LOOK_SITES, elem_classes="ml-look")
            with gr.Column(min_width=300, scale=2):
                dots = plots.deviations(first.reports, _site(first))
                self.dots = PlotlyPanel(dots, label="Channels", elem_id="dots", height=300)
                gr.Markdown(words.LOOK_CHANNELS, elem_classes="ml-look")

    @property
    def widgets(self) -> list:
        """All that an outcome changes."""
        pictures = [self.variance, self.bars, self.verdict, self.matching, self.heat, self.dots]
        return [self.now, self.whose, *pictures, self.site, self.scores, self.table, *self.files]

    def updates(self, outcome: Outcome, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Updates that show an outcome, whole or so far."""
        known = [one.site for one in outcome.reports[0].channels]
        site = data[self.site] if data[self.site] in known else _site(outcome)
        return {
            self.now: outcome,
            self.whose: data[self.whose],
            self.variance: _variance(outcome),
            self.bars: _bars(outcome),
            self.verdict: words.verdict(outcome),
            self.matching: _matching(outcome),
            self.heat: plots.ratio_heatmap(outcome.reports, data[self.whose]),
            self.dots: plots.deviations(outcome.reports, site),
            self.site: gr.update(choices=_sites(outcome), value=site),
            self.scores: frame_of(outcome.score_table()),
            self.table: frame_of(outcome.table()),
        }

    def wire(self) -> None:
        """A click on the heatmap, or the keyboard, opens a site of the outcome that is drawn."""

        def clicked(outcome: Outcome, event: gr.EventData) -> str:
            known = [one.site for one in outcome.reports[0].channels]
            name = str(getattr(event, "name", ""))
            return name if name in known else known[0]

        open_site = told(lambda outcome, name: plots.deviations(outcome.reports, name))
        show_side = told(lambda outcome, who: plots.ratio_heatmap(outcome.reports, who))
        self.heat.select(told(clicked), self.now, self.site, **AT_ONCE)
        self.site.change(open_site, [self.now, self.site], self.dots, trigger_mode="always_last", **AT_ONCE)
        self.whose.input(show_side, [self.now, self.whose], self.heat, **AT_ONCE)


def _followed(telling: Generator, drawn: Callable[[Outcome], dict]) -> Generator[Step | dict, None, Any]:
    """A job whose outcomes so far are drawn as they come; returns its result."""
    return relayed(telling, lambda news: news if isinstance(news, Step) else drawn(news))


def _variance(outcome: Outcome) -> dict:
    return plots.variance_ratio(outcome.reports, outcome.plain, outcome.theory, words.name_of_merge(outcome))


def _bars(outcome: Outcome) -> dict:
    return plots.repaired_bars(outcome.reports, outcome.tested, words.name_of_merge(outcome))


def _matching(outcome: Outcome) -> dict:
    return plots.matching(outcome.matching.objective, outcome.matching.before, outcome.matching.after)


def _site(outcome: Outcome) -> str:
    """The site that has lost most: where to look first."""
    channels = outcome.reports[0].channels if outcome.reports else ()
    return min(channels, key=lambda one: one.log2_ratio()).site if channels else ""


def _sites(outcome: Outcome) -> list[tuple[str, str]]:
    return [(plots.site_label(one.site), one.site) for one in outcome.reports[0].channels] if outcome.reports else []
