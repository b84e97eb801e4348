"""What the person at the page is told: errors as one sentence, progress as a bar, in one place that never jumps."""

import functools
import html
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.line import Waiting, shared_line
from mergelab.page.visitors import visitor
from mergelab.step import Step

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Queued, as gradio shows no error of an event that is not; any number at once: heavy work waits in a line of our own.
AT_ONCE: dict[str, Any] = PRIVATE | {"concurrency_limit": None}

_log = logging.getLogger("mergelab")


def told(handler: Callable) -> Callable:
    """A handler whose MergeErrors pop up as they are, and whose bugs as a number to look up in the log."""

    @functools.wraps(handler)
    def safe(*given: Any) -> Any:
        with _popping_up():
            return handler(*given)

    return safe


def job(status: gr.HTML, verb: str) -> Callable:
    """Makes a handler of a generator of Steps and updates: steps become the status line, errors its last word.

    The generator yields Steps as it goes, and dicts of updates for other widgets. It begins when its turn has come.
    """

    def over(handler: Callable[..., Iterator[Step | dict]]) -> Callable:
        @functools.wraps(handler)
        def safe(*given: Any) -> Iterator[dict]:
            said = 0.0
            try:
                for news in shared_line().in_turn(lambda: handler(*given), visitor()):
                    if isinstance(news, dict):
                        yield news
                    elif isinstance(news, Waiting):
                        yield {status: waiting(news)}
                    elif time.monotonic() - said > 0.1:  # a page needs no more than ten a second
                        yield {status: running(verb, news)}
                        said = time.monotonic()
            except Exception as error:
                yield {status: saying(sentence_of(error), "bad")}

        return safe

    return over


def stopped(status: str | None, kept: str = "Nothing half-made was kept.") -> Any:
    """The status line after a job: one that still says 'running' was stopped. kept: what is left of it."""
    return saying(f"Stopped. {kept}") if "ml-running" in (status or "") else gr.skip()


def saying(sentence: str, kind: str = "") -> str:
    """The status line. kind: '' | 'good' | 'bad'."""
    return f'<div class="ml-status {kind}" role="status">{html.escape(sentence)}</div>'


def running(verb: str, step: Step) -> str:
    """The status line while a job runs, with its bar."""
    sentence = html.escape(f"{verb}: {step.done} of {step.total} · {step.name}")
    bar = f'<progress max="{step.total}" value="{step.done}" aria-label="{html.escape(verb)}"></progress>'
    return f'<div class="ml-status ml-running" role="status"><span>{sentence}</span>{bar}</div>'


def waiting(news: Waiting) -> str:
    """The status line of a job whose turn has not come."""
    return f'<div class="ml-status ml-running" role="status"><span>{html.escape(news.sentence)}</span></div>'


@contextmanager
def _popping_up() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise gr.Error(html.escape(sentence_of(error)), print_exception=False) from None


def sentence_of(error: Exception) -> str:
    """What a person is told of an error; a bug goes to the log, and its number to them."""
    if isinstance(error, MergeError):
        return str(error)
    number = uuid.uuid4().hex[:8]
    _log.error("bug %s", number, exc_info=error)
    return f"This is a fault of mergelab, number {number} in its log. Nothing of yours was lost."
