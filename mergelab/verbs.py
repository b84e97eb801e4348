"""For a notebook: what takes several rooms to do, in one call each. `import mergelab` loads nothing large for it."""

from collections.abc import Generator, Sequence
from pathlib import Path

from mergelab.errors import MergeError
from mergelab.files.sources import folder_of
from mergelab.recipes.recipe import Recipe
from mergelab.scores.sweep_report import SweepReport
from mergelab.step import Step


def sweep(
    recipe: Recipe, knob: str, values: Sequence[float], scored: bool = True, device: str = "auto"
) -> Generator[Step, None, SweepReport]:
    """One setting over some values, in memory; scored on the bundled experts' held-out prompts, or measured alone."""
    from mergelab.lab.lab import Lab

    return (yield from Lab(device=device).sweep(recipe, knob, values, None if scored else []))


def generate(source: str | Path, prompt: str, tokens: int = 48, temperature: float = 0.0, seed: int = 0) -> str:
    """The answer of a model: a folder, a bundled name or one of the Hub. MergeError if it cannot be prompted."""
    from mergelab.model import answer, running

    if not prompt:
        raise MergeError("The prompt is empty. Write something to ask.")
    *_, text = answer(running(folder_of(str(source))), prompt, tokens=tokens, temperature=temperature, seed=seed)
    return text
