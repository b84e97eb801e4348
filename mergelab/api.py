"""The public names of mergelab. Importing this brings in torch, and neither gradio nor transformers."""

import mergelab.start  # noqa: F401

# isort: split

from mergelab.errors import MergeError
from mergelab.merging.devices import device_named
from mergelab.merging.merge import inspect, merge
from mergelab.method import METHODS, STEPS, Choice, Knob, Layer, Merged, Switch, merge_method, merge_step
from mergelab.planning.check import check
from mergelab.planning.plan import Plan, plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.report import LayerReport, Report
from mergelab.step import result
from mergelab.verbs import generate, sweep

__all__ = [
    "METHODS", "STEPS", "Choice", "Expert", "Knob", "Layer", "LayerReport", "MergeError", "Merged", "Plan", "Recipe",
    "Report", "Switch", "check", "device_named", "generate", "inspect", "merge", "merge_method", "merge_step", "plan",
    "result", "sweep",
]  # fmt: skip
