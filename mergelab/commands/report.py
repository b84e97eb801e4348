"""The command `mergelab report`: all that there is to say of a recipe, as one HTML page and as one JSON file."""

import argparse

from mergelab.commands.verb import add_device
from mergelab.lab.lab import Lab, method_title
from mergelab.plots.document import document
from mergelab.recipes.recipe import Recipe
from mergelab.report import Report
from mergelab.step import result
from mergelab.table import check_places, written_to
from mergelab.words import counted


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("out", metavar="OUT.html", help="a page that needs no network and nothing beside it")
    verb.add_argument("--scores", action="store_true", help="merge it for the while, and score it on the bundled tasks")
    verb.add_argument("--json", metavar="FILE", help="write everything there, singular values included")
    add_device(verb)


def run(asked: argparse.Namespace) -> None:
    """Write the page."""
    check_places(asked.out, asked.json)
    report = reported(Lab(device=asked.device), Recipe.read(asked.recipe), asked.scores)
    written_to(asked.out, document(report, method_title(report)))
    if asked.json:
        written_to(asked.json, report.to_json())
    print(f"{asked.out}: {counted(len(report.decomposed), 'matrix')} of {counted(len(report.experts), 'expert')}")


def reported(lab: Lab, recipe: Recipe, scores: bool = False) -> Report:
    """The report of a recipe: its analysis and, if asked for, the scores and hashes of its merge."""
    if not scores:
        return result(lab.analyse(recipe))
    run = result(lab.merge(recipe))
    return result(lab.whole_report(lab.noted(run, result(lab.scores(run)))))
