"""Two buttons that hand out the report of the newest merge: one page for people, one file for programs."""

from collections.abc import Callable, Iterator

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab, method_title
from mergelab.page.telling import AT_ONCE, job, saying
from mergelab.page.verbs import Verb
from mergelab.plots.document import document
from mergelab.report import Report
from mergelab.step import Step


def _page(report: Report) -> str:
    return document(report, method_title(report))


_FORMS: dict[str, tuple[str, str, Callable[[Report], str]]] = {
    "html": ("Report as one page (HTML)", "mergelab-report.html", _page),
    "json": ("Report as one file (JSON)", "mergelab-report.json", Report.to_json),
}
READY = "A report holds every spectrum and number: one for people, one for programs."
# A download button whose file is made by its own click would hand out the one before.
_FETCH = "() => { const a = document.querySelector('#%s'); (a.closest('a') || a.querySelector('a') || a).click() }"


def draw_report(lab: Lab, merged: gr.State, stop: gr.Button) -> None:
    """Draw the buttons and their own status line, and wire them to the run whose key `merged` holds."""
    buttons = gr.Row()
    status = gr.HTML(
        saying(READY),
        elem_id="report-status",
        padding=False,
    )
    with buttons:
        for kind, (label, name, written) in _FORMS.items():
            button = gr.Button(label, size="md", elem_id=f"report-{kind}")
            fetched = gr.DownloadButton(visible="hidden", elem_id=f"fetch-report-{kind}")
            pressed = button.click(
                _made(lab, merged, status, fetched, name, written), {merged}, [status, fetched], **AT_ONCE
            )
            Verb(button, stop, status).governs([pressed])
            pressed.success(None, None, None, js=_FETCH % f"fetch-report-{kind}")


def _made(lab: Lab, merged: gr.State, status: gr.HTML, fetched: gr.DownloadButton, name: str, written: Callable):
    @job(status, "Writing the report")
    def make(data: dict) -> Iterator[Step | dict]:
        if not data[merged]:
            raise MergeError("Nothing is merged yet. Press Merge first; an analysis alone is under All numbers.")
        run = lab.run_named(data[merged])
        report = yield from lab.whole_report(run)
        path = run.folder.parent / name
        path.write_text(written(report), encoding="utf-8")
        yield {fetched: str(path), status: saying(f"The report is {path.stat().st_size / 1e6:.1f} MB.", "good")}

    return make
