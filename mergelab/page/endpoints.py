"""The same verbs for machines: typed endpoints, which gradio also offers as MCP tools. Recipes travel as YAML text.

What cannot be done is said as a MergeError's own sentence. Heavy verbs wait in the line of the page, within its limits.
"""

import functools
import html
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab, Run
from mergelab.lab.line import shared_line
from mergelab.lab.repair import RepairLab
from mergelab.lab.saved import zipped
from mergelab.method import METHODS
from mergelab.page.telling import sentence_of
from mergelab.page.visitors import forget_session
from mergelab.recipes.recipe import Recipe
from mergelab.repair.outcome import Trial

LONGEST = 200_000  # characters of a recipe


def publish(lab: Lab, repairs: RepairLab) -> None:
    """Offer the verbs; call inside the Blocks."""

    def list_methods() -> list[dict[str, Any]]:
        """List the merge methods: name, what each does, its paper, how many experts it takes, its settings."""
        return [_described(method) for method in METHODS.values()]

    def check(recipe: str) -> dict[str, Any]:
        """Say all that is wrong with a recipe, and what it would take, without reading any weights.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
        """
        return json.loads(lab.check(_recipe(recipe)).to_json())

    def inspect(recipe: str) -> dict[str, Any]:
        """Say what a recipe would do to each tensor: ranks kept, sign conflicts, singular values. Writes nothing.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
        """
        return json.loads(_in_turn(lab, lambda: lab.analyse(_recipe(recipe))).to_json())

    def merge(recipe: str) -> dict[str, Any]:
        """Merge models as a recipe says. Returns the report, the sha256 of the weights, and where to fetch the model.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
        """
        run = _in_turn(lab, lambda: lab.merge(_recipe(recipe)))
        return json.loads(run.report.to_json()) | {"download": f"/gradio_api/file={zipped(run.folder)}"}

    def sweep(recipe: str, knob: str, values: list[float], scored: bool = True) -> dict[str, Any]:
        """Merge once for each value of one setting, in memory, and score each. Returns a point for each value.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
            knob: the setting to vary, such as eta, or 'experts' for their number.
            values: its values, at most 60.
            scored: whether each point is scored on the bundled experts' held-out prompts, or only measured.
        """
        points = tuple(_number(value, "values") for value in _listed(values, "values"))
        if not 0 < len(points) <= 60:
            raise MergeError(f"'values' has {len(points)} numbers. Give between 1 and 60.")
        asked = None if scored else []
        return _in_turn(lab, lambda: lab.sweep(_recipe(recipe), str(knob), points, asked)).to_dict()

    def repair(recipe: str, samples: int = 32, tasks: list[str] | None = None) -> dict[str, Any]:
        """Merge, then give each task the activation statistics of its expert (TACT). Returns scores and variances.

        Args:
            recipe: a merge of bundled experts in mergekit's YAML; `mergelab: {align: weights}` aligns them first.
            samples: calibration samples a task, 4 to 512.
            tasks: names of the experts to repair for; all of them if it is left out.
        """
        asked = _recipe(recipe)
        wanted = tuple(map(str, _listed(tasks or [], "tasks")))
        trial = Trial(replace(asked, align="none"), samples=int(_number(samples, "samples")), tasks=wanted)
        return json.loads(_in_turn(lab, lambda: repairs.tell(trial, asked.align)).outcome.to_json())

    def generate(recipe: str, prompt: str, tokens: int = 48, temperature: float = 0.0, seed: int = 0) -> dict[str, str]:
        """Ask the base and the merge that a recipe makes the same prompt. Returns both answers.

        Args:
            recipe: a merge recipe in mergekit's YAML (merge_method, base_model, models, parameters).
            prompt: what to ask.
            tokens: the longest answer, in tokens.
            temperature: 0 always takes the likeliest token.
            seed: of the draw, if the temperature is above 0.
        """
        asked = _recipe(recipe)
        how = {"tokens": max(1, int(_number(tokens, "tokens"))), "seed": int(_number(seed, "seed"))}
        how["temperature"] = max(0.0, _number(temperature, "temperature"))
        lab.limits.check_tokens(how["tokens"])

        def work() -> Generator[Any, None, dict[str, str]]:
            run: Run = yield from lab.merged(asked)
            texts = ["", ""]
            for texts in lab.answers([lab.model_folder(asked.base, asked.base), run.folder], str(prompt), **how):
                yield texts
            return dict(zip(("base", "merged"), texts)) | {"sha256": run.sha256}

        return _in_turn(lab, work)

    for verb in (list_methods, check, inspect, merge, sweep, repair, generate):
        gr.api(_plainly(verb), api_name=verb.__name__, concurrency_limit=None)


def _plainly(verb: Callable) -> Callable:
    """The verb, whose MergeErrors are the endpoint's error, word for word."""

    @functools.wraps(verb)
    def plain(*given: Any, **named: Any) -> Any:
        try:
            return verb(*given, **named)
        except Exception as error:
            raise gr.Error(html.escape(sentence_of(error), quote=False), print_exception=False) from None
        finally:
            forget_session()

    return plain


def _in_turn(lab: Lab, work: Callable[[], Generator]) -> Any:
    """Wait for the turn, walk a job to its end, and return its result; a visitor who has left ends it."""
    home, job = lab.home, shared_line().in_turn(work)
    try:
        while home.is_dir():
            next(job)
        raise MergeError("Whoever asked for this has left.")
    except StopIteration as end:
        return end.value
    finally:
        job.close()


def _recipe(text: Any) -> Recipe:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise MergeError(f"A recipe is a text in mergekit's YAML, of at most {LONGEST} characters.")
    return Recipe.from_yaml(text)


def _listed(values: Any, name: str) -> Iterable[Any]:
    if not isinstance(values, list):
        raise MergeError(f"'{name}' must be a list.")
    return values


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**53:
        raise MergeError(f"'{name}' must be a number.")
    return value


def _described(method: Any) -> dict[str, Any]:
    settings = {
        setting.name: {"default": setting.default, "help": setting.knob.help, **_range(setting.knob)}
        for setting in method.settings
    }
    plain = {name: getattr(method, name) for name in ("name", "title", "summary", "paper", "fewest", "most")}
    return plain | {"settings": settings}


def _range(knob: Any) -> dict[str, Any]:
    bounds = {name: getattr(knob, name) for name in ("low", "high", "step") if hasattr(knob, name)}
    return bounds | ({"options": list(knob.options)} if hasattr(knob, "options") else {})
