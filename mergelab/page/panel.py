"""A Plotly figure on the page that is updated in place, follows the theme, and tells which point was clicked.

gr.Plot remounts its node at each update, has no click event and leaks; this is gr.HTML with assets/panel.js behind it.
"""

import json
from typing import Any

import gradio as gr

from mergelab.assets import ASSETS

PLOTLY_JS = ASSETS / "vendor" / "plotly-cartesian.min.js"  # of the version that the plotly package has
PANEL_JS = ASSETS / "panel.js"
ADDRESS_JS, NUMBERS_JS, STREAM_JS = (ASSETS / f"{name}.js" for name in ("address", "numbers", "stream"))
PAGE_CSS = ASSETS / "page.css"
SERVED = [STREAM_JS, PLOTLY_JS, PANEL_JS, NUMBERS_JS, ADDRESS_JS, ASSETS / "fields.js", ASSETS / "learn.js"]
HEAD = "".join(f'<script src="gradio_api/file={path}"></script>' for path in SERVED)

_TEMPLATE = '<div class="ml-plot" style="height:%dpx"></div>'
_MOUNT = "mergelab.mount({element, props, trigger, watch, key: %s}); /* gradio looks here for its name: 'select' */"


class PlotlyPanel(gr.HTML):
    """A figure (a dict for plotly.js). `select` fires on a click, with x, y and name (the point's customdata)."""

    def __init__(self, value: dict | None = None, *, label: str, elem_id: str, height: int, **options: Any):
        super().__init__(
            value=value,
            label=label,
            elem_id=elem_id,
            min_height=height,
            apply_default_css=False,
            head=HEAD,
            html_template=_TEMPLATE % height,  # constant: a change would wipe the plot
            js_on_load=_MOUNT % json.dumps(elem_id),
            **options,
        )

    def preprocess(self, payload: Any) -> None:
        return None  # figures travel to the browser, never back

    def postprocess(self, value: dict | str | None) -> str | None:
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def api_info(self) -> dict[str, Any]:
        return {"type": "string"}
