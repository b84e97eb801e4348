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
        forget_session()

    page.unload(left)


def forget_session() -> None:
    """Let go the session of this event: some megabytes, which gradio holds for an hour, and of machines for ever."""
    blocks, session = LocalContext.blocks.get(None), visitor()
    if blocks is not None and session:
        with blocks.state_holder.lock:
            blocks.state_holder.session_data.pop(session, None)
            blocks.state_holder.time_last_used.pop(session, None)
