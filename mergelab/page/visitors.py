"""Who is asking: each open page, and each call of a machine, is a visitor of its own, and takes along what it made."""

import gradio as gr
from gradio.context import LocalContext

from mergelab.lab.lab import Lab


def visitor() -> str:
    """The session that an event belongs to; '' while the page is drawn, and outside of it."""
    request = LocalContext.request.get(None)
    return (request.session_hash or "") if request else ""


def watch_visitors(lab: Lab, page: gr.Blocks) -> None:
    """Let the lab know who asks, and who has left; call inside the Blocks."""
    lab.visitor = visitor

    def left(request: gr.Request) -> None:  # gradio fills it in by its type
        lab.leave(request.session_hash or "")

    page.unload(left)
