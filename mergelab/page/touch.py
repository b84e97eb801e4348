"""A small matrix that can be touched: its singular values, the cut, the rescaled result, all computed in the browser.

The mathematics is in assets/learn.js.
"""

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from mergelab.page.panel import HEAD

_TEMPLATE = """<div class="ml-touch">
  <section><h3>τ, yours</h3><div data-part="given" class="ml-cells"></div><div data-part="examples"></div></section>
  <section><h3>its strengths, and the cut</h3><ol data-part="bars"></ol>
    <label><span data-part="eta-said"></span>
      <input type="range" min="1" max="100" data-part="eta" aria-label="η"></label>
    <label><input type="checkbox" checked data-part="rescale"> rescale</label></section>
  <section><h3>τ′, what is averaged</h3><div data-part="result" class="ml-cells"></div></section>
  <p data-part="said" role="status"></p>
</div>"""


class TouchMatrix(gr.HTML):
    """A matrix and an η to begin with; the reader changes both."""

    def __init__(self, matrix: Sequence[Sequence[float]], eta: float, **options: Any):
        super().__init__(
            value=json.dumps({"matrix": matrix, "eta": eta}),
            apply_default_css=False,
            head=HEAD,
            html_template=_TEMPLATE,  # constant: a change would wipe what the reader wrote
            js_on_load="mergelabLearn.mount({element, props})",
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        return {"type": "string"}
