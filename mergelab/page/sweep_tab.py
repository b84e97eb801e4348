"""One knob over a range: scores and geometry against it, and any point back into the form."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab
from mergelab.lab.shipped import start_sweep
from mergelab.method import METHODS
from mergelab.page.asked import Asked
from mergelab.page.form import Form
from mergelab.page.freshness import EXAMPLE, draw_freshness
from mergelab.page.numbers import frame_and_file
from mergelab.page.panel import PlotlyPanel
from mergelab.page.telling import AT_ONCE, job, saying, told
from mergelab.page.verbs import draw_verb
from mergelab.plots import scores as plots_scores
from mergelab.recipes.recipe import Recipe
from mergelab.scores.knobs import EXPERTS, MOST_POINTS, knobs_of, sensible_range, spread, symbol
from mergelab.scores.suggest import suggested_eta
from mergelab.scores.sweep_report import SweepReport, verdict
from mergelab.step import Step
from mergelab.words import counted

OPENING = "What is shown is an example, made in advance. Sweep makes it anew, with the recipe in the form."
LOOK_SCORE = (
    "**Score:** look for a hill that rises above the grey band, the average with its 95 % interval; a flat top means "
    "that the exact value hardly matters. "
)
LOOK = "**Geometry:** what the knob does to the merged change. **Click a point** to make it the recipe."
KEPT = "The points that it had finished are shown."
SCORED, ASKED, GEOMETRY = "the bundled tasks", "what the Scores tab asks", "nothing: geometry alone"


def draw_sweep_tab(lab: Lab, form: Form, asked: Asked, tab: gr.Tab) -> None:
    """Draw the tab; wire Sweep, Stop, the choice of a point, and the form's Suggest η."""
    start = METHODS[form.method.value]
    first = next(iter(knobs_of(start, len(form.experts.value))))
    low, high, count = sensible_range(knobs_of(start, 9)[first])
    opening = start_sweep()
    recipes = gr.State(_recipes(opening))  # the recipe of each point, as YAML
    with gr.Row():
        knob = gr.Dropdown(_choices(form.method.value, form.experts.value), value=first, label="Knob", elem_id="knob")
        lowest = gr.Number(low, label="From", min_width=80, elem_id="sweep-from")
        highest = gr.Number(high, label="To", min_width=80, elem_id="sweep-to")
        points = gr.Number(count, label="Points", min_width=80, elem_id="sweep-points")
        by = gr.Dropdown([SCORED, ASKED, GEOMETRY], value=SCORED, label="Score on", min_width=180, elem_id="sweep-by")
    verb = draw_verb("Sweep", "sweep", OPENING)
    fresh = draw_freshness(form, tab, "Sweep", opening.points[0].recipe, opening.knob)
    curves = PlotlyPanel(plots_scores.sweep_curves(opening), label="Sweep", elem_id="curves", height=420)
    about = gr.Markdown(_look(opening), elem_classes="ml-look")
    said = gr.Markdown(f"{EXAMPLE} {_said(opening)}", elem_id="verdict")
    with gr.Row():
        labels = _labels(opening)
        spot = gr.Dropdown(
            labels,
            value=labels[opening.best or 0],
            label="A point of this sweep",
            type="index",
            scale=3,
            min_width=200,
            elem_id="point",
        )
        use = gr.Button("Use this point", scale=1, min_width=140, elem_id="use-point")
    with gr.Accordion("All numbers", open=False):
        rows, path = _numbers(lab, opening)
        table = gr.Dataframe(rows, label="A row per point", interactive=False, max_height=420, elem_id="sweep-table")
        download = gr.DownloadButton("These numbers (CSV)", value=path, size="sm", elem_id="sweep-csv")

    @job(verb.status, "Sweeping")
    def sweep(data: dict) -> Iterator[Step | dict]:
        recipe = form.recipe(data)
        values = _values(data, recipe)
        questions = {SCORED: None, GEOMETRY: []}.get(data[by]) if data[by] != ASKED else asked.questions(data)
        work = lab.sweep(recipe, data[knob], values, questions)
        report = None
        for step in work:
            yield step
            if step.made and step.made.points:
                report = step.made
                yield {curves: plots_scores.sweep_curves(report), **found(report, len(values))}
                yield fresh.updates(recipe, data[knob])
        yield {verb.status: saying(f"{counted(len(report.points), 'point')} swept.", "good"), **found(report)}

    def _values(data: dict, recipe: Recipe) -> tuple[float, ...]:
        known = knobs_of(METHODS[recipe.method], len(recipe.experts))
        if data[knob] not in known:
            raise MergeError("This method has no such knob. Choose one of those in the list.")
        if None in (data[lowest], data[highest], data[points]):
            raise MergeError("A sweep needs a value to begin with, one to end with, and how many points.")
        count = how_many(data[points])
        return spread(float(data[lowest]), float(data[highest]), count, known[data[knob]].step)

    def found(report: SweepReport, total: int = 0) -> dict[Any, Any]:
        labels = _labels(report)
        return {
            said: _said(report, total),
            about: _look(report),
            recipes: _recipes(report),
            spot: gr.update(choices=labels, value=labels[report.best or 0]),
            **dict(zip((table, download), _numbers(lab, report))),
        }

    def used(index: int | None, kept: list[str]) -> dict[Any, Any]:
        if index is None or not 0 <= index < len(kept):
            raise MergeError("Choose a point of the sweep first.")
        recipe = Recipe.from_yaml(kept[index])
        return {**form.filled(recipe), verb.status: saying("The form has the recipe of that point. Merge makes it.")}

    def clicked(kept: list[str], event: gr.EventData) -> dict[Any, Any]:
        name = str(getattr(event, "name", ""))
        return used(int(name) if name.isdecimal() else None, kept)

    def chosen(data: dict) -> dict[Any, Any]:
        """The knobs of what the form says now; another method than before begins with its first one."""
        known, same = _knobs(data[form.method], data[form.experts]), data[form.method] == data[before]
        name = data[knob] if same and data[knob] in known else next(iter(known), None)
        return {
            before: data[form.method],
            knob: gr.update(choices=_choices(data[form.method], data[form.experts]), value=name),
            **ranged(name, data),
        }

    def ranged(name: str | None, data: dict) -> dict[Any, Any]:
        known = _knobs(data[form.method], data[form.experts])
        return dict(zip((lowest, highest, points), sensible_range(known[name]))) if name in known else {}

    @job(form.status, "Analysing")
    def suggest(data: dict) -> Iterator[Step | dict]:
        report = yield from lab.analyse(form.recipe(data))
        eta = suggested_eta(report)
        if eta is None:
            raise MergeError("No expert changes a matrix that is decomposed, so there is no spectrum to judge by.")
        said = f"Suggested from the spectra alone: η = {eta}, where the merge is about as large as one expert's change."
        yield {form.eta: eta, form.status: saying(said, "good")}

    filled = [*form.outputs, verb.status]
    outputs = [verb.status, fresh.made, fresh.line, recipes, curves, about, said, spot, table, download]
    given = form.inputs | asked.inputs | {knob, lowest, highest, points, by}
    verb.governs([verb.go.click(sweep, given, outputs, trigger_mode="once", **AT_ONCE)], kept=KEPT)
    asked_for = form.suggest.click(suggest, form.inputs, [form.eta, form.status], trigger_mode="once", **AT_ONCE)
    form.verb.governs([asked_for])
    curves.select(told(clicked), recipes, filled, **AT_ONCE)
    use.click(told(used), [spot, recipes], filled, **AT_ONCE)
    ranges = {form.method, form.experts, knob}
    before, span = gr.State(form.method.value), [lowest, highest, points]
    form.picked.click(chosen, ranges | {before}, [before, knob, *span], trigger_mode="always_last", **AT_ONCE)
    knob.input(lambda data: ranged(data[knob], data), ranges, span, **AT_ONCE)


def how_many(points: float) -> int:
    """How many points are asked for; MergeError if that is no number of them."""
    if not 1 <= points <= MOST_POINTS or points != int(points):
        raise MergeError(f"Points must be a whole number from 1 to {MOST_POINTS}, not {points:g}.")
    return int(points)


def _look(report: SweepReport) -> str:
    scored = bool(report.points and report.points[0].scores)
    return LOOK_SCORE * scored + LOOK


def _said(report: SweepReport, total: int = 0) -> str:
    """What a sweep shows. total: how many points it will have, if there are more to come."""
    so_far = [f"**{len(report.points)} of {total} points.**"] if len(report.points) < total else []
    return " ".join([*so_far, verdict(report), *report.notes])


def _recipes(report: SweepReport) -> list[str]:
    return [point.recipe.to_yaml() for point in report.points]


def _labels(report: SweepReport) -> list[str]:
    return [_label(report, i) for i in range(len(report.points))]


def _numbers(lab: Lab, report: SweepReport) -> tuple[dict[str, Any], str]:
    return frame_and_file(lab, f"sweep-{report.knob}", report.table())


def _knobs(method: str, experts: list | None) -> dict[str, Any]:
    return knobs_of(METHODS[method], len(experts or [])) if method in METHODS else {}


def _choices(method: str, experts: list | None) -> list[tuple[str, str]]:
    return [("number of experts" if name == EXPERTS else symbol(name), name) for name in _knobs(method, experts)]


def _label(report: SweepReport, index: int) -> str:
    point = report.points[index]
    exact = point.scores and point.scores[0].higher_is_better
    mean = f": {point.mean.value:{'.1%' if exact else '.4g'}}" if point.mean else ""
    star = " (best on these prompts)" if index == report.best else ""
    return f"{symbol(report.knob)} {point.value:g}{mean}{star}"
