"""A tab's verb: the button that starts its job, the one that stops it, the line beside them that says how it goes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mergelab.page.telling import AT_ONCE, PRIVATE, saying, stopped


@dataclass(frozen=True)
class Verb:
    """Three widgets; the tab wires `go` and hands its events back."""

    go: gr.Button
    stop: gr.Button
    status: gr.HTML

    def governs(self, events: Iterable[Any], **kept: str) -> None:
        """Stop ends these events; however one ends, the line no longer says that it runs. kept: as `stopped` has it."""
        events = list(events)
        self.stop.click(None, None, None, cancels=events, **PRIVATE)
        for event in events:
            event.then(lambda status: stopped(status, **kept), self.status, self.status, **AT_ONCE)


def draw_verb(label: str, key: str, opening: str = "") -> Verb:
    """Draw them in a row. key: the start of their element ids; opening: what the line says at first."""
    with gr.Row(elem_classes="ml-verb"):
        go = gr.Button(label, variant="primary", scale=0, min_width=140, elem_id=key)
        stop = gr.Button("Stop", scale=0, min_width=90, elem_id=f"stop-{key}", elem_classes="ml-stop")
        status = gr.HTML(saying(opening), elem_id=f"{key}-status", elem_classes="ml-told", min_width=220)
    return Verb(go, stop, status)
