"""The command `mergelab check`: what is wrong with a recipe, without any weights."""

import argparse

from mergelab.planning.check import check
from mergelab.recipes.recipe import Recipe
from mergelab.table import check_places, written_to


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("--json", metavar="FILE", help="write all that was found there")


def run(asked: argparse.Namespace) -> int:
    """Check, and print what was found; 1 if anything is wrong."""
    check_places(asked.json)
    found = check(Recipe.read(asked.recipe))
    print("\n".join(found.lines()))
    if asked.json:
        written_to(asked.json, found.to_json())
    return 1 if found.problems else 0
