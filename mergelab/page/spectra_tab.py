"""The first tab: what the recipe keeps of each delta, module by module, before anything is merged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mergelab.assets import bundled
from mergelab.errors import MergeError
from mergelab.lab.gallery import with_all_settings
from mergelab.lab.lab import Lab, analysis_key, start_analysis
from mergelab.lab.saved import saved_analysis
from mergelab.page import spectra_words as words
from mergelab.page.form import Form
from mergelab.page.numbers import frame_of
from mergelab.page.overrides import draw_overrides
from mergelab.page.panel import PlotlyPanel
from mergelab.page.telling import AT_ONCE, job, saying, told
from mergelab.plots import spectra as plots
from mergelab.plots.parts import Figure, short_name
from mergelab.recipes.recipe import Recipe
from mergelab.report import Report
from mergelab.scores.suggest import suggested_eta
from mergelab.step import Step
from mergelab.words import counted


@dataclass(frozen=True)
class Spectra:
    """The tab for others. pictures(report, fact, module): the updates of `outputs` that show an analysis.

    drawn: the fact that the heatmap shows; empty it to have the next analysis draw the one in `facts`.
    """

    facts: gr.Dropdown
    modules: gr.Dropdown
    drawn: gr.State
    outputs: list
    pictures: Callable[[Report, str, str], dict[Any, Any]]


def draw_spectra_tab(lab: Lab, form: Form) -> Spectra:
    """Draw the tab; wire Analyse, and all that chooses what is shown."""
    start = start_analysis(lab)
    eta, first = plots.cut_at(start) or 40.0, start.decomposed[0].name
    shown = gr.State(analysis_key(Recipe.from_dict(start.recipe)))  # the analysis
    drawn = gr.State(plots.LIVE)  # the fact of it
    with gr.Row():
        facts = gr.Dropdown(
            list(start.facts),
            value=plots.LIVE,
            label="Show",
            allow_custom_value=True,
            scale=1,
            min_width=130,
            elem_id="fact",
        )
        modules = gr.Dropdown(
            _modules(start),
            value=first,
            label="Module",
            allow_custom_value=True,
            scale=2,
            min_width=130,
            elem_id="module",
        )
    gr.HTML('<p id="readout" class="ml-readout"></p>', padding=False)
    heat = PlotlyPanel(_heat(start, plots.LIVE, eta), label="Heatmap", elem_id="heat", height=230)
    about_heat = gr.Markdown(words.look_heat(start, plots.LIVE), elem_classes="ml-look", elem_id="look-heat")
    draw_overrides(form, modules)
    lines = PlotlyPanel(plots.spectra(start, first, eta), label="Spectra", elem_id="lines", height=360)
    about_lines = gr.Markdown(words.look_spectra(True), elem_classes="ml-look", elem_id="look-lines")
    with gr.Column(visible=False) as joint_part:
        joint = PlotlyPanel(None, label="Joint space", elem_id="joint", height=360)
        about_joint = gr.Markdown(words.LOOK_JOINT, elem_classes="ml-look", elem_id="look-joint")
    with gr.Accordion("What am I looking at?", open=False):
        about = gr.Markdown(
            words.about(start),
            elem_id="about-method",
            latex_delimiters=[
                {"left": "$$", "right": "$$", "display": True},
                {"left": "$", "right": "$", "display": False},
            ],
        )
    with gr.Accordion("All numbers", open=False):
        table = gr.Dataframe(
            frame_of(start.table()), label="A row per module and expert", interactive=False, max_height=420
        )
        with gr.Row():
            csv, json = (str(path) for path in saved_analysis(lab, start))
            as_csv = gr.DownloadButton("These numbers (CSV)", value=csv, size="sm")
            as_json = gr.DownloadButton("The whole analysis, spectra included (JSON)", value=json, size="sm")
    heat_part, module_part = [heat, about_heat, drawn], [lines, about_lines, joint_part, joint, about_joint]
    outputs = [form.status, shown, facts, modules, about, *heat_part, *module_part, table, as_csv, as_json]

    def heat_figure(report: Report, fact: str, eta: float) -> dict[Any, Any]:
        return {heat: _heat(report, fact, eta), about_heat: words.look_heat(report, fact), drawn: fact}

    def module_figures(report: Report, name: str) -> dict[Any, Any]:
        has_joint = bool(report.decomposed) and "ownership" in plots.layer_named(report, name).curves
        return {
            lines: plots.spectra(report, name, plots.cut_at(report)),
            about_lines: words.look_spectra(plots.cut_at(report) is not None, plots.rescales(report)),
            about_joint: words.look_joint(report, name),
            joint_part: gr.update(visible=has_joint),
            joint: plots.joint_space(report, name) if has_joint else None,
        }

    @job(form.status, "Analysing")
    def analyse(data: dict) -> Iterator[Step | dict]:
        report = yield from lab.analyse(form.recipe(data))
        count = f"{counted(len(report.decomposed), 'matrix')} of {counted(len(report.experts), 'expert')}"
        said = f"{count} analysed in {report.seconds:.1f} s." if report.seconds else f"{count}, analysed in advance."
        status = {form.status: saying(" ".join([said, *report.notes]), "good")}
        yield status | pictures(report, kept_fact(report, data), data[modules])

    def kept_fact(report: Report, data: dict) -> str:
        """The fact that is drawn, while only settings change; another method begins with its first one.

        One that is chosen and not drawn yet was asked for, by a lesson.
        """
        before = lab.analyses[data[shown]].recipe if data[shown] in lab.analyses else {}
        same = before.get("merge_method") == report.recipe["merge_method"]
        return data[facts] if same or data[facts] != data[drawn] else ""

    def pictures(report: Report, fact: str, module: str | None) -> dict[Any, Any]:
        fact = fact if fact in report.facts else report.facts[0]
        module = plots.layer_named(report, module or "").name if report.decomposed else None
        csv, json = (str(path) for path in saved_analysis(lab, report))
        return {
            shown: analysis_key(Recipe.from_dict(report.recipe)),
            facts: gr.update(choices=list(report.facts), value=fact),
            modules: gr.update(choices=_modules(report), value=module),
            about: words.about(report),
            **heat_figure(report, fact, plots.cut_at(report) or 40.0),
            **module_figures(report, module or ""),
            table: frame_of(report.table()),
            as_csv: csv,
            as_json: json,
        }

    def analyse_if_quick(data: dict) -> Iterator[Any]:
        sources = [data[form.base], *(data[form.experts] or [])]
        if all(source in bundled() for source in sources) and not is_shown(data):
            yield from analyse(data)
        else:
            yield gr.skip()  # gradio empties what a generator says nothing of

    def is_shown(data: dict) -> bool:
        """Whether the pictures are of this recipe already: a link or an example filled the form and drew them."""
        try:
            return analysis_key(with_all_settings(form.recipe(data))) == data[shown]
        except MergeError:
            return False

    def clicked(key: str, event: gr.EventData) -> str:
        return plots.layer_named(_report(lab, key), str(getattr(event, "name", ""))).name

    form.eta.change(None, form.eta, None, js="eta => { window.mergelab && mergelab.setEta(eta) }")
    heat.select(told(clicked), shown, modules, **AT_ONCE)
    show_module = told(lambda key, name: module_figures(_report(lab, key), name or ""))
    modules.change(show_module, [shown, modules], module_part, trigger_mode="always_last", **AT_ONCE)
    show_fact = told(lambda key, fact, eta: heat_figure(_report(lab, key), fact, eta))
    facts.input(show_fact, [shown, facts, form.eta], heat_part, trigger_mode="always_last", **AT_ONCE)

    given = form.inputs | {facts, modules, shown, drawn}
    pressed = form.analyse.click(analyse, given, outputs, trigger_mode="once", **AT_ONCE)
    changed = form.quick.click(analyse_if_quick, given, outputs, trigger_mode="always_last", **AT_ONCE)
    form.verb.governs([pressed, changed])
    return Spectra(facts, modules, drawn, outputs, pictures)


def _heat(report: Report, fact: str, eta: float) -> Figure:
    """The heatmap, with the η that the spectra suggest where it follows η."""
    figure = plots.fact_heatmap(report, fact, eta)
    if (follow := figure["layout"]["meta"].get("eta")) and follow["kind"] == "heat":
        follow["suggested"] = suggested_eta(report)
    return figure


def _report(lab: Lab, key: str) -> Report:
    if key not in lab.analyses:
        raise MergeError("That analysis is not kept any more. Press Analyse again.")
    return lab.analyses[key]


def _modules(report: Report) -> list[tuple[str, str]]:
    return [
        (f"{short_name(layer.name)} · {'×'.join(map(str, layer.shape))}", layer.name) for layer in report.decomposed
    ]
