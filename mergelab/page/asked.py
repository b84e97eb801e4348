"""What models are scored on: the bundled tasks, or the visitor's own prompts; several tabs ask the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mergelab.page.telling import AT_ONCE
from mergelab.scores.questions import MEASURES, Questions, questions_from, questions_in

BUNDLED, OWN = "the bundled tasks", "my own prompts"
EXAMPLE = "french: 21 = => vingt et un\nenglish: 21 = => twenty-one\nmorse: 21 = => ..--- .----"
HOW = (
    "One line each: `prompt => answer`, and `=> task` if you like. A file may be .txt (the same lines), .csv with the "
    "columns prompt, answer, task, or .jsonl with those keys. For perplexity a line may be a bare text. A right answer "
    "is the very text, in the tokens that the tokenizer makes of it."
)


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


def draw_asked() -> Asked:
    """Draw the widgets; those of own prompts are hidden until they are wanted."""
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
    what.change(lambda choice: gr.update(visible=choice == OWN), what, own, **AT_ONCE)
    return Asked(what, text, file, measure, ends)
