"""The same verbs for machines: typed endpoints, which gradio also offers as MCP tools. Recipes travel as YAML text."""

import json
from dataclasses import replace
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab
from mergelab.recipes.recipe import Recipe
from mergelab.repair.outcome import Trial


def publish(lab: Lab, repairs: RepairLab) -> None:
    """Offer `inspect`, `merge` and `repair`; call inside the Blocks."""

    def inspect(recipe: str) -> dict[str, Any]:
        """Say what a recipe would do to each tensor: ranks kept, sign conflicts, singular values. Writes nothing.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
        """
        report = _result(lab.analyse(_recipe(recipe)))
        return json.loads(report.to_json())

    def merge(recipe: str) -> dict[str, Any]:
        """Merge models as a recipe says. Returns the report; its sha256 names the weights that were written.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
        """
        run = _result(lab.merge(_recipe(recipe)))
        return json.loads(run.report.to_json())

    def repair(recipe: str, samples: int = 32) -> dict[str, Any]:
        """Merge, then give each task the activation statistics of its expert (TACT). Returns scores and variances.

        Args:
            recipe: a merge of bundled experts in mergekit's YAML; `mergelab: {align: weights}` aligns them first.
            samples: calibration samples a task, 4 to 512.
        """
        asked = _recipe(recipe)
        told = _result(repairs.tell(Trial(replace(asked, align="none"), samples=samples), asked.align))
        return json.loads(told.outcome.to_json())

    for verb in (inspect, merge, repair):
        gr.api(verb, api_name=verb.__name__, concurrency_limit=1, concurrency_id="heavy")


def _recipe(text: str) -> Recipe:
    try:
        return Recipe.from_yaml(text)
    except MergeError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _result(job: Any) -> Any:
    """Walk a job to its end and return its result; a MergeError becomes the endpoint's error."""
    try:
        while True:
            next(job)
    except StopIteration as end:
        return end.value
    except MergeError as error:
        raise gr.Error(str(error), print_exception=False) from None
