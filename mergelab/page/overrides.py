"""A row under the heatmap that gives a setting another value for the module chosen there, its kind, or its layer.

What is set so is listed in the recipe column, where each can be taken away again.
"""

from typing import Any

import gradio as gr

from mergelab.method import METHODS
from mergelab.page.filters import parsed, parts_of, place_of
from mergelab.page.form import Form
from mergelab.page.telling import AT_ONCE, told
from mergelab.recipes.varying import shown


def draw_overrides(form: Form, modules: gr.Dropdown) -> None:
    """A row under the heatmap: a setting and a value for the module that is chosen there, its kind, or its layer."""
    title = "Give this module, its kind or its layer a setting of its own"
    with gr.Accordion(title, open=False), gr.Row(elem_id="override"):
        starting = METHODS[form.method.value].starting()
        first = next(iter(starting))
        setting = gr.Dropdown([*starting], value=first, label="Set", scale=1, min_width=110, elem_id="override-setting")
        value = gr.Textbox(shown(starting[first]), label="to", scale=1, min_width=70, elem_id="override-value")
        words = {"module": "for this module", "kind": "for all of its kind", "layer": "for its layer"}
        buttons = {
            scope: gr.Button(text, size="sm", min_width=110, elem_id=f"override-{scope}")
            for scope, text in words.items()
        }

    def knobs(method: str) -> tuple[Any, str]:
        starting = METHODS[method].starting()
        first = next(iter(starting), None)
        return gr.update(choices=[*starting], value=first), shown(starting[first]) if starting else ""

    def starting_value(method: str, name: str) -> str:
        return shown(METHODS[method].starting().get(name, ""))

    def added(scope: str) -> Any:
        def more(method: str, module: str, name: str, text: str, lines: list[str]) -> list[str]:
            new = f"{name} = {text} in {parts_of(module)[scope]}"
            METHODS[method].checked({name: parsed(new)[1]["value"]})
            return [new, *(old for old in lines or [] if place_of(old) != place_of(new))]

        return told(more)

    form.method.change(knobs, form.method, [setting, value], **AT_ONCE)
    setting.input(starting_value, [form.method, setting], value, **AT_ONCE)
    for scope, button in buttons.items():
        button.click(added(scope), [form.method, modules, setting, value, form.overrides], form.overrides, **AT_ONCE)
