"""Who is asking: each open page, and each call of a machine, is a visitor of its own, and takes along what it made."""

from collections import deque
from collections.abc import Iterable

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
    gone: deque[str] = deque(maxlen=64)

    def left(request: gr.Request) -> None:  # gradio fills it in by its type
        lab.leave(request.session_hash or "")
        forget_session()
        gone.append(request.session_hash or "")
        forget_answers(page, gone)

    page.unload(left)


def forget_session() -> None:
    """Let go the session of this event: some megabytes, which gradio holds for an hour, and of machines for ever."""
    blocks, session = LocalContext.blocks.get(None), visitor()
    if blocks is not None and session:
        with blocks.state_holder.lock:
            blocks.state_holder.session_data.pop(session, None)
            blocks.state_holder.time_last_used.pop(session, None)


def forget_answers(page: gr.Blocks, gone: Iterable[str]) -> None:
    """Let go what was answered to those who have gone and nobody has fetched; gradio would hold 2000 such sessions."""
    queue = page._queue
    busy = {event.session_hash for event in list(queue.event_ids_to_events.values())}
    for session in gone:
        if session not in busy:
            queue.pending_messages_per_session.pop(session, None)
            queue.pending_event_ids_session.pop(session, None)
