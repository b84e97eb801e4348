"""The left column: everything a recipe holds, as widgets. The knobs are drawn from each method's declaration."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import gradio as gr
import yaml

from mergelab.assets import bundled
from mergelab.errors import MergeError
from mergelab.lab.gallery import FIRST, examples
from mergelab.lab.lab import START, Lab
from mergelab.markdown import plain
from mergelab.method import METHODS, STEPS, Choice, MergeMethod, Setting, Switch, step_named
from mergelab.page.filters import apart, with_overrides
from mergelab.page.telling import AT_ONCE, saying, told
from mergelab.page.verbs import Verb
from mergelab.recipes.mergekit_yaml import number
from mergelab.recipes.recipe import DTYPES, Expert, Recipe
from mergelab.recipes.varying import NO_YAML, in_words, mapped, shown, well_formed

# What a method looks at, as its line in the dropdown says; those that are in no family follow, by name.
FAMILIES = {
    "spectral": "star drm_h drm_v tsv_m iso_c iso_cts knots_ties knots_dare core_space swudi",
    "entries": "linear task_arithmetic ties dare_linear dare_ties della della_linear breadcrumbs breadcrumbs_ties "
    "sce consensus pcb metagpt",
    "angles": "model_stock multislerp karcher nuslerp slerp nearswap",
}
KEEP, NOTHING, OWN = "as the base", "nothing", "a recipe of your own"


class Form:
    """The widgets of a recipe; reads them as a Recipe and fills them from one."""

    example: gr.Dropdown
    base: gr.Dropdown
    experts: gr.Dropdown
    method: gr.Dropdown
    about: gr.Markdown
    groups: dict[str, gr.Group]
    knobs: dict[tuple[str, str], gr.Slider | gr.Checkbox | gr.Dropdown]
    suggest: gr.Button
    then: gr.Radio
    steps: dict[str, gr.Group]
    seed: gr.Number
    overrides: gr.Dropdown
    also: gr.Markdown  # what the recipe says that no widget shows
    rest: gr.State  # what a recipe has and no widget shows
    weights: gr.Textbox
    dtype: gr.Dropdown
    embeddings: gr.Checkbox
    analyse: gr.Button
    merge: gr.Button
    stop: gr.Button
    link: gr.Button
    status: gr.HTML
    settled: gr.Button  # the browser clicks it when something in the form has become another one, but for η
    quick: gr.Button  # and then this one, for what may take a while
    picked: gr.Button  # and this one when base, experts or method have: their own `change` comes without one, too
    yaml: gr.Code

    @property
    def inputs(self) -> set:
        """All that a recipe is read from."""
        plain = {self.base, self.experts, self.method, self.weights, self.dtype, self.embeddings, self.then, self.seed}
        plain |= {self.overrides, self.rest}
        return plain | set(self.knobs.values())

    @property
    def outputs(self) -> list:
        """All that `filled` may change."""
        return [*self.inputs, self.about, *self.groups.values(), *self.steps.values()]

    @property
    def verb(self) -> Verb:
        """Merge with the Stop and the status line beside it, which the other jobs of the form have, too."""
        return Verb(self.merge, self.stop, self.status)

    @property
    def eta(self) -> gr.Slider:
        """STAR's η, which the pictures follow in the browser."""
        return self.knobs["star", "eta"]

    def recipe(self, data: Mapping[Any, Any]) -> Recipe:
        """The recipe that the widgets say. data: widget -> value, as gradio hands over a set of inputs."""
        method = METHODS[data[self.method]]
        sources = [str(source).strip() for source in data[self.experts] or []]
        weights = _weights(data[self.weights], len(sources))
        if not data[self.base]:
            raise MergeError("No base is chosen. Pick the model that the experts were fine-tuned from.")
        if not sources:
            raise MergeError("No expert is chosen. Pick at least two models fine-tuned from the base.")
        rest = data[self.rest] or {}
        own = _own(sources, rest.get("own", ()))
        return Recipe(
            base=str(data[self.base]).strip(),
            experts=tuple(map(Expert, sources, weights, own)),
            method=method.name,
            settings=method.checked(with_overrides(self._settings(method, data), data[self.overrides] or [])),
            dtype=None if data[self.dtype] == KEEP else data[self.dtype],
            decompose_embeddings=bool(data[self.embeddings]),
            seed=max(0, int(data[self.seed] or 0)),
            then={step: self._settings(STEPS[step], data) for step in STEPS if step == data[self.then]},
            **rest.get("fields", {}),
        )

    def _settings(self, method: MergeMethod, data: Mapping[Any, Any]) -> dict[str, Any]:
        return method.checked({s.name: data[self.knobs[method.name, s.name]] for s in method.settings})

    def filled(self, recipe: Recipe) -> dict[Any, Any]:
        """Updates that make the widgets say a recipe."""
        if recipe.method not in METHODS:
            raise MergeError(f"There is no merge method '{recipe.method}'.")
        method = METHODS[recipe.method]
        settings, lines = apart(method.checked(recipe.settings))
        settings = {
            name: default if settings[name] is None else settings[name] for name, default in method.checked({}).items()
        }
        weights = [shown(expert.weight) for expert in recipe.experts]
        return {
            self.base: recipe.base,
            self.experts: [expert.source for expert in recipe.experts],
            self.method: recipe.method,
            self.weights: "" if set(weights) <= {"1"} else ", ".join(weights),
            self.dtype: recipe.dtype or KEEP,
            self.embeddings: recipe.decompose_embeddings,
            self.seed: recipe.seed,
            self.then: next(iter(recipe.then), NOTHING),
            self.overrides: gr.update(value=lines, choices=lines),
            self.rest: _rest(recipe),
            **{self.knobs[recipe.method, name]: value for name, value in settings.items()},
            **{self.knobs[s, name]: v for s, given in recipe.then.items() for name, v in _step(s, given).items()},
            **self.shown(recipe.method),
            **self.shown_step(next(iter(recipe.then), NOTHING)),
        }

    def shown(self, method: str) -> dict[Any, Any]:
        """Updates that show one method's sentence and knobs."""
        groups = {group: gr.update(visible=name == method) for name, group in self.groups.items()}
        return groups | {self.about: _about(METHODS[method])}

    def shown_step(self, step: str) -> dict[Any, Any]:
        """Updates that show one step's knobs."""
        return {group: gr.update(visible=name == step) for name, group in self.steps.items()}


def draw_form(lab: Lab) -> Form:
    """Draw the column, and wire what stays inside it."""
    start, form = Recipe.read(START), Form()
    names = list(bundled())
    typed = "a Hub id" if lab.limits.public else "a folder, a Hub id"
    form.example = gr.Dropdown(
        [*((example.title, name) for name, example in examples().items()), (OWN, OWN)],
        value=FIRST,
        label="Start from an example",
        elem_id="example",
    )
    form.base = gr.Dropdown(
        [name for name in names if name.endswith("/base")],
        value=start.base,
        label="Base model",
        info="A bundled name or a Hub id." if lab.limits.public else "A bundled name, a folder, or a Hub id.",
        allow_custom_value=True,
    )
    form.experts = gr.Dropdown(
        _fine_tuned_from(start.base),
        value=[expert.source for expert in start.experts],
        label="Experts",
        info=f"Fine-tuned from the base. Type {typed}, or model+adapter, and press Enter.",
        multiselect=True,
        allow_custom_value=True,
        elem_id="experts",
    )
    form.method = gr.Dropdown(_titles(), value=start.method, label="Method", elem_id="method")
    form.about = gr.Markdown(_about(METHODS[start.method]), elem_id="about")
    form.knobs, form.groups, form.steps = {}, {}, {}
    for method in METHODS.values():
        with gr.Group(visible=method.name == start.method) as form.groups[method.name]:
            for setting in method.settings:
                form.knobs[method.name, setting.name] = _knob(method, setting, start)
            if method.name == "star":
                form.suggest = gr.Button("Suggest η from the spectra", size="md", elem_id="suggest")
    form.rest, form.also = gr.State({}), gr.Markdown("", elem_id="also")
    form.overrides = gr.Dropdown(
        [],
        value=[],
        label="Settings for some modules alone",
        info="× takes one away.",
        multiselect=True,
        allow_custom_value=True,
        elem_id="overrides",
    )
    with gr.Accordion("More settings", open=False):
        choices, said = [(step.title, name) for name, step in STEPS.items()], [s.summary for s in STEPS.values()]
        form.then = gr.Radio(
            [NOTHING, *choices], value=NOTHING, label="After the merge", info=" ".join(said), elem_id="then"
        )
        for step in STEPS.values():
            with gr.Group(visible=False) as form.steps[step.name]:
                for setting in step.settings:
                    form.knobs[step.name, setting.name] = _knob(step, setting, start)
        form.weights = gr.Textbox("", label="Weights of the experts", placeholder="1, 1, 0.5 (empty: all 1)")
        form.dtype = gr.Dropdown([KEEP, *DTYPES], value=KEEP, label="Number format of the merged weights")
        form.embeddings = gr.Checkbox(
            False,
            label="Decompose embeddings, too",
            info="By default: entry by entry.",
        )
        form.seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="Of what a method draws at random.")
    with gr.Accordion("Recipe as YAML", open=False) as yaml:
        form.yaml = gr.Code(
            language="yaml", label="The same recipe for the command line", interactive=True, visible=False
        )  # drawn when it is opened: an editor is a tenth of the page's weight
        apply = gr.Button("Apply this text to the form", size="md")
    form.link = gr.Button("Copy link", size="md", elem_id="copy-link")
    with gr.Column(elem_id="foot"):  # always in view beside long tabs: see page.css
        with gr.Row(elem_id="verbs"):
            form.analyse = gr.Button("Analyse", min_width=70)
            form.merge = gr.Button("Merge", variant="primary", min_width=70, elem_id="merge")
            form.stop = gr.Button("Stop", variant="stop", min_width=60, elem_id="stop")
        form.status = gr.HTML(saying("Drag the slider: the pictures follow."), elem_id="status")

    form.settled = gr.Button(visible="hidden", elem_id="settled")
    form.quick = gr.Button(visible="hidden", elem_id="quick")
    form.picked = gr.Button(visible="hidden", elem_id="picked")
    told_by = sorted(form.inputs - {form.eta, form.rest}, key=lambda widget: widget._id)
    changing = [widget.change for widget in told_by]
    # An answer makes a list of things "change" that are what they were: the browser looks.
    picks = [told_by.index(widget) for widget in (form.base, form.experts, form.method)]
    gr.on(changing, None, told_by, None, js=f"(...values) => {{ mergelab.formChanged(values, {picks}) }}")
    form.rest.change(_told_of_rest, form.rest, form.also, **AT_ONCE)
    form.rest.change(None, None, None, js="() => { mergelab.settled() }")
    form.base.change(lambda base: gr.update(choices=_fine_tuned_from(base)), form.base, form.experts, **AT_ONCE)

    def checked(data: dict) -> Any:
        """The status line of a quick look at what is picked; bundled models are analysed at once instead."""
        if all(source in names for source in (data[form.base], *(data[form.experts] or []))):
            return gr.skip()
        try:
            found = lab.check(form.recipe(data))
        except MergeError as error:
            return saying(str(error), "bad")
        return saying(" ".join([found.summary, *found.notes[:2]]), "bad" if found.problems else "good")

    form.picked.click(told(checked), form.inputs, form.status, trigger_mode="always_last", **AT_ONCE)
    form.method.change(form.shown, form.method, [form.about, *form.groups.values()], **AT_ONCE)
    form.then.change(form.shown_step, form.then, [*form.steps.values()], **AT_ONCE)
    as_yaml = told(lambda data: gr.update(value=form.recipe(data).to_yaml(), visible=True))
    yaml.expand(as_yaml, form.inputs, form.yaml, **AT_ONCE | {"queue": False})
    apply.click(told(lambda text: form.filled(Recipe.from_yaml(text))), form.yaml, form.outputs, **AT_ONCE)
    return form


def _fine_tuned_from(base: str | None) -> list[str]:
    """The bundled experts of a bundled base's family; not those from initialisations of their own."""
    family = (base or "").partition("/")[0]
    names = [name for name in bundled() if name.startswith(f"{family}/") and not name.endswith("/base")]
    return [name for name in names if not name.startswith(f"{family}/scratch-")]


def _titles() -> list[tuple[str, str]]:
    families = {name: family for family, names in FAMILIES.items() for name in names.split() if name in METHODS}
    known = [(f"{METHODS[name].title} · {family}", name) for name, family in families.items()]
    return known + [(METHODS[name].title, name) for name in sorted(METHODS.keys() - families)]


def _step(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return step_named(name).checked(settings)


def _about(method: MergeMethod) -> str:
    paper = f" [arXiv {method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else ""
    return method.summary + paper


def _knob(method: MergeMethod, setting: Setting, start: Recipe) -> gr.Slider | gr.Checkbox | gr.Dropdown:
    value = start.settings.get(setting.name, setting.start) if method.name == start.method else setting.start
    label, place = _symbol(setting.name), {"elem_id": f"knob-{method.name}-{setting.name}", "interactive": True}
    if isinstance(setting.knob, Switch):
        return gr.Checkbox(value, label=label, info=setting.knob.help, **place)
    if isinstance(setting.knob, Choice):
        place |= {"label": label, "info": setting.knob.help}
        return gr.Dropdown(list(setting.knob.options), value=value, **place)
    knob = setting.knob
    return gr.Slider(knob.low, knob.high, value=value, step=knob.step, label=label, info=knob.help, **place)


def _symbol(name: str) -> str:
    return {"eta": "η (eta)", "lambda": "λ (lambda)"}.get(name, name)


def _rest(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says that no widget shows: it goes back into the recipe as it is."""
    shown_ones = {"base", "experts", "method", "settings", "dtype", "decompose_embeddings", "seed", "then"}
    plain = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name not in shown_ones}
    return {"fields": plain, "own": [(expert.source, dict(expert.settings)) for expert in recipe.experts]}


def _told_of_rest(rest: dict[str, Any]) -> str:
    """A line on what the recipe says that no widget shows; nothing where it is as usual."""
    usual = {f.name: f.default for f in fields(Recipe)}
    said = {name: value for name, value in rest.get("fields", {}).items() if value != usual[name]}
    said |= {
        f"{Expert(source).name}: {key}": value for source, own in rest.get("own", ()) for key, value in own.items()
    }
    return f"Also in this recipe: {plain(in_words(said))}. *Recipe as YAML* shows it." if said else ""


def _own(sources: list[str], known: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The settings that each expert has of its own, as a recipe had them; a model that stands twice has two."""
    left, found = list(known), []
    for source in sources:
        place = next((i for i, (name, _) in enumerate(left) if name == source), None)
        found.append({} if place is None else left.pop(place)[1])
    return found


def _weights(text: str | None, count: int) -> list[Any]:
    if not (text or "").strip():
        return [1.0] * count
    try:
        weights = [well_formed(w, "A weight") for w in yaml.safe_load(f"[{text.replace(';', ',').strip().strip(',')}]")]
        weights = [mapped(weight, lambda value: number(value, "A weight")) for weight in weights]
    except (MergeError, *NO_YAML):
        raise MergeError(f"Weights must be numbers with commas between, not '{text}'.") from None
    if len(weights) != count:
        raise MergeError(f"There are {count} experts and {len(weights)} weights. Give one weight for each, or none.")
    return weights
