"""The lab without a browser, a verb each. Exits with 0, or with 1 and a line that says why.

A verb's file has `add`, for its words, and `run`. It is imported, and torch with it, when its verb is said.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from importlib import import_module

from mergelab import __version__

VERBS = {
    "merge": "merge as a recipe says, into a new Hugging Face folder",
    "check": "say what is wrong with a recipe, and what it would take, without any weights",
    "inspect": "say what a recipe would do to each tensor, and write no model",
    "export": "write a model as a LoRA adapter of its base, and say what that costs",
    "push": "put a folder on the Hugging Face Hub, with HF_TOKEN or the stored login",
    "sweep": "score one setting over a range; writes no model",
    "report": "write what a recipe would do as a page to show around; writes no model",
    "align": "write a model in another one's coordinates: its neurons in the matching order",
    "repair": "give a merge the statistics that each task's expert has, and write it",
    "app": "open the page",
}


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mergelab", description="See what a merge does, then make it.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    words = {name: verbs.add_parser(name, help=what) for name, what in VERBS.items()}
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if (name := arguments[0]) not in VERBS:
        parser.parse_args(arguments)  # prints help, or ends with what is wrong
        parser.error("say the verb first")
    import mergelab.start  # noqa: F401  before anything else brings in torch
    from mergelab.commands.verb import exit_status

    verb = import_module(f"mergelab.commands.{name}")
    gc.freeze()  # what is imported by now stays: not to be searched for garbage, nor taken apart at the end
    verb.add(words[name])
    return exit_status(verb.run, parser.parse_args(arguments))
