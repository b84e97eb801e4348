"""The command `mergelab sweep`: one setting of a recipe over a range, as a table, a verdict, CSV and JSON."""

import argparse
import json

from mergelab.commands.progress import walked
from mergelab.commands.verb import add_device
from mergelab.lab.lab import Lab
from mergelab.recipes.recipe import Recipe
from mergelab.scores.knobs import values_from
from mergelab.scores.questions import MEASURES, questions_in
from mergelab.scores.sweep_report import verdict
from mergelab.table import aligned, check_places, csv_text, written_to


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("--knob", required=True, help="a number of the method (eta, drop, …), or 'experts': how many")
    verb.add_argument("--values", required=True, help="10:100:10 (from, to, step) or 10,20,50")
    verb.add_argument("--prompts", metavar="FILE", help="yours (.txt, .csv, .jsonl), instead of the bundled tasks")
    verb.add_argument("--measure", choices=MEASURES, default=MEASURES[0], help="of your prompts (default: %(default)s)")
    verb.add_argument("--csv", metavar="FILE", help="write the table there")
    verb.add_argument("--json", metavar="FILE", help="write everything there, each point's recipe included")
    add_device(verb)


def run(asked: argparse.Namespace) -> None:
    """Sweep, and print a table and a verdict."""
    check_places(asked.csv, asked.json)
    recipe, values = Recipe.read(asked.recipe), values_from(asked.values)
    own = questions_in(asked.prompts, asked.measure) if asked.prompts else None
    job = Lab(device=asked.device).sweep(recipe, asked.knob, values, own)
    report = walked(job, lambda step: f"{step.done}/{step.total} {step.name}")
    table = report.table()
    print(aligned(*table))
    print(verdict(report))
    for note in report.notes:
        print(f"note: {note}")
    if asked.csv:
        written_to(asked.csv, csv_text(*table))
    if asked.json:
        written_to(asked.json, json.dumps(report.to_dict(), indent=1, ensure_ascii=False))
