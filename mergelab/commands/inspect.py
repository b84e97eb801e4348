"""The command `mergelab inspect`: what a recipe would do to each tensor."""

import argparse

from mergelab.commands.progress import followed
from mergelab.commands.verb import add_work, print_remarks
from mergelab.merging.devices import device_named, speaks
from mergelab.merging.merge import inspect
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Recipe
from mergelab.report import Fact, Report
from mergelab.table import aligned, check_places, written_to


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    add_work(verb)
    verb.add_argument("--json", metavar="FILE", help="write the whole report there, singular values included")
    verb.add_argument("--diagnose", action="store_true", help="rounding, overlap and sign conflicts, too: costs more")


def run(asked: argparse.Namespace) -> None:
    """Inspect, and print a table of it."""
    check_places(asked.json)
    work = plan(Recipe.read(asked.recipe))
    job = inspect(work, device_named(asked.device), asked.workers, asked.diagnose)
    report = followed(job, len(work.names))
    if not speaks():
        return
    print(_table(report))
    print_remarks(report)
    if asked.json:
        written_to(asked.json, report.to_json())


def _table(report: Report) -> str:
    """The report's decomposed tensors as text: a row per tensor, a column per fact, experts in the recipe's order."""
    facts, header, rows = report.facts, ["tensor", "shape", *report.facts], []
    for layer in report.decomposed:
        shape = "×".join(map(str, layer.shape))
        rows.append([layer.name, shape, *(_cell(layer.facts.get(fact, ())) for fact in facts)])
    others = len(report.layers) - len(report.decomposed)
    order = f"Experts, in the order of the numbers in a cell: {', '.join(report.experts)}."
    rest = f"{others} further tensors are not decomposed (embeddings, norms, biases)."
    return "\n".join([order, aligned(header, rows), order, rest])


def _cell(fact: Fact) -> str:
    return " ".join(f"{number:.4g}" for number in (fact if isinstance(fact, tuple) else (fact,)))
