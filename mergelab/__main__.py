"""The lab without a browser: `python -m mergelab merge | inspect | sweep | app`. Exits with 0, or 1 and a line why."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mergelab.errors import MergeError
from mergelab.merge import Progress, device_named, inspect, merge
from mergelab.plan import plan
from mergelab.recipe import DTYPES, Recipe
from mergelab.report import Fact, Report
from mergelab.sweep_command import add_sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended cleans up as Ctrl-C does
    try:
        asked.verb(asked)
        sys.stdout.flush()
    except MergeError as error:
        print(f"mergelab: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mergelab: stopped; nothing was written.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mergelab", description="See what a merge does, then make it.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("merge", help="merge as a recipe says, into a new Hugging Face folder")
    _add_recipe(verb)
    verb.add_argument("out", metavar="OUT_DIR", help="a folder that does not exist yet")
    verb.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: the recipe's, else the base's)")
    verb.set_defaults(verb=_merge)

    verb = verbs.add_parser("inspect", help="say what a recipe would do to each tensor, and write no model")
    _add_recipe(verb)
    verb.add_argument("--json", metavar="FILE", help="write the whole report there, singular values included")
    verb.set_defaults(verb=_inspect)

    add_sweep(verbs)

    verb = verbs.add_parser("app", help="open the page (needs the app's packages)")
    verb.add_argument("--port", type=int, help="where to listen (default: the first free one from 7860)")
    verb.set_defaults(verb=_app)
    return parser


def _add_recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")


def _merge(asked: argparse.Namespace) -> None:
    recipe = Recipe.read(asked.recipe)
    work = plan(replace(recipe, dtype=asked.dtype or recipe.dtype))
    report = _followed(merge(work, asked.out, device_named(asked.device)), len(work.names))
    _print_remarks(report)
    print(f"{asked.out}: {len(report.layers)} tensors in {report.seconds:.1f} s")
    for file, digest in report.sha256.items():
        print(f"sha256 {digest}  {file}")


def _inspect(asked: argparse.Namespace) -> None:
    work = plan(Recipe.read(asked.recipe))
    report = _followed(inspect(work, device_named(asked.device)), len(work.names))
    print(_table(report))
    _print_remarks(report)
    if asked.json:
        try:
            Path(asked.json).write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            raise MergeError(f"Cannot write '{asked.json}': {error.strerror}.") from None


def _app(asked: argparse.Namespace) -> None:
    from mergelab.page import launch  # gradio: seconds to import

    try:
        launch(server_port=asked.port)
    except OSError as error:
        raise MergeError(f"Cannot open the page: {error}") from None


def _followed(job: Progress, total: int) -> Report:
    """Walk a job to its end, with a progress line on a terminal; its report."""
    done = 0
    with closing(job):
        try:
            while True:
                layer = next(job)
                done += 1
                _show_progress(f"{done}/{total} {layer.name}")
        except StopIteration as end:
            return end.value
        finally:
            _show_progress("")


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def _print_remarks(report: Report) -> None:
    for note in report.notes:
        print(f"note: {note}")
    for name, why in report.skipped.items():
        print(f"not merged: {name}: {why}")


def _table(report: Report) -> str:
    """The report's decomposed tensors as text: a row per tensor, a column per fact, experts in the recipe's order."""
    facts, rows = report.facts, [["tensor", "shape", *report.facts]]
    for layer in report.decomposed:
        shape = "×".join(map(str, layer.shape))
        rows.append([layer.name, shape, *(_cell(layer.facts.get(fact, ())) for fact in facts)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    others = len(report.layers) - len(report.decomposed)
    order = f"Experts, in the order of the numbers in a cell: {', '.join(report.experts)}."
    return "\n".join([*lines, order, f"{others} further tensors are not decomposed (embeddings, norms, biases)."])


def _cell(fact: Fact) -> str:
    return " ".join(f"{number:.4g}" for number in (fact if isinstance(fact, tuple) else (fact,)))


if __name__ == "__main__":
    sys.exit(main())
