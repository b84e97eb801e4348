"""The lab without a browser, a verb each. Exits with 0, or with 1 and a line that says why."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mergelab.start  # noqa: F401  before anything else brings in torch

# isort: split

from mergelab.commands.progress import followed, walked
from mergelab.commands.repair import add_repair
from mergelab.commands.report import add_report
from mergelab.commands.sweep import add_sweep
from mergelab.errors import MergeError
from mergelab.files.push import push
from mergelab.files.sources import folder_of
from mergelab.merging.devices import ProcessLost, device_named, is_alone, leave, speaks
from mergelab.merging.export import check_rank, export_lora
from mergelab.merging.journal import fingerprint
from mergelab.merging.merge import inspect, merge
from mergelab.merging.output import free_place, is_unfinished
from mergelab.merging.realign import WAYS, realigned
from mergelab.planning.check import check
from mergelab.planning.plan import plan
from mergelab.recipes.mergekit_yaml import size
from mergelab.recipes.recipe import DTYPES, Recipe
from mergelab.report import Fact, Report
from mergelab.table import aligned, check_places, written_to

_WORKERS = "tensors at a time (default: one per core, or as few as the free memory has room for)"


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status."""
    gc.freeze()  # what is imported by now stays: not to be searched for garbage, nor taken apart at the end
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended cleans up as Ctrl-C does
    try:
        status = asked.verb(asked)
        sys.stdout.flush()
    except ProcessLost as error:
        _say_why(str(error))
        os._exit(1)  # at once: an orderly end would wait for the lost one, or abort
    except MergeError as error:
        _say_why(str(error))
        return 1
    except KeyboardInterrupt:
        _say_why("stopped; nothing was written." if is_alone() else "stopped; run the same command again to go on.")
        return 130
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        leave()
    return status or 0


def _say_why(sentence: str) -> None:
    """One line on stderr, from one of the processes if there are several."""
    if speaks():
        print(f"mergelab: {' '.join(sentence.split())}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mergelab", description="See what a merge does, then make it.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("merge", help="merge as a recipe says, into a new Hugging Face folder")
    _add_recipe(verb)
    verb.add_argument("out", metavar="OUT_DIR", help="a folder that does not exist yet")
    verb.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: the recipe's, else the base's)")
    verb.add_argument(
        "--shard-size", metavar="SIZE", help="most bytes of a weight file, 5GB say (default: the base's files)"
    )
    verb.add_argument("--lora", type=int, metavar="RANK", help="write OUT_DIR-lora, too: the merge as an adapter")
    verb.set_defaults(verb=_merge)

    verb = verbs.add_parser(
        "check", help="say what is wrong with a recipe, and what it would take, without any weights"
    )
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("--json", metavar="FILE", help="write all that was found there")
    verb.set_defaults(verb=_check)

    verb = verbs.add_parser("inspect", help="say what a recipe would do to each tensor, and write no model")
    _add_recipe(verb)
    verb.add_argument("--json", metavar="FILE", help="write the whole report there, singular values included")
    verb.add_argument("--diagnose", action="store_true", help="rounding, overlap and sign conflicts, too: costs more")
    verb.set_defaults(verb=_inspect)

    verb = verbs.add_parser("export", help="write a model as a LoRA adapter of its base, and say what that costs")
    verb.add_argument("model", metavar="MODEL", help="a folder that mergelab has written, or any full model")
    verb.add_argument("out", metavar="OUT_DIR", help="a folder that does not exist yet")
    verb.add_argument("--rank", type=int, required=True, help="of every matrix in the adapter")
    verb.add_argument("--base", help="the model that it is an adapter of (default: that of MODEL's recipe.yaml)")
    verb.set_defaults(verb=_export)

    verb = verbs.add_parser("push", help="put a folder on the Hugging Face Hub, with HF_TOKEN or the stored login")
    verb.add_argument("folder", metavar="FOLDER")
    verb.add_argument("repo", metavar="OWNER/NAME")
    verb.add_argument("--private", action="store_true", help="if the repository is made anew")
    verb.set_defaults(verb=_push)

    add_sweep(verbs)
    add_report(verbs)

    verb = verbs.add_parser(
        "align", help="write a model in another one's coordinates: its neurons in the matching order"
    )
    verb.add_argument("expert", metavar="EXPERT", help="the model whose neurons are put in order")
    verb.add_argument("--to", metavar="REFERENCE", required=True, help="the model whose order they take")
    verb.add_argument("--out", metavar="DIR", required=True, help="a folder that does not exist yet")
    verb.add_argument("--how", default="weights", choices=WAYS, help="what is compared (default: weights)")
    verb.add_argument(
        "--data", metavar="FILE", type=Path, help="calibration prompts for activations and best, a line each"
    )
    verb.add_argument("--permute-only", action="store_true", help="no rotations inside heads: every number is kept")
    verb.set_defaults(verb=_align)

    add_repair(verbs)

    verb = verbs.add_parser("app", help="open the page")
    verb.add_argument("--port", type=int, help="where to listen (default: the first free one from 7860)")
    verb.set_defaults(verb=_app)
    return parser


def _add_recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    verb.add_argument("--workers", type=int, metavar="N", help=_WORKERS)


def _merge(asked: argparse.Namespace) -> None:
    recipe = Recipe.read(asked.recipe)
    recipe = replace(recipe, dtype=asked.dtype, out_dtype=None) if asked.dtype else recipe
    recipe = replace(recipe, shard_size=size(asked.shard_size, "--shard-size")) if asked.shard_size else recipe
    adapter = f"{asked.out.rstrip('/')}-lora"
    if asked.lora is not None:
        check_rank(asked.lora)
        free_place(adapter)
    work, device = plan(recipe), device_named(asked.device)
    if is_unfinished(asked.out, fingerprint(work, device)) and speaks():
        print(f"going on with a merge to '{asked.out}' that was broken off", file=sys.stderr, flush=True)
    report = followed(merge(work, asked.out, device, asked.workers), len(work.names))
    if not speaks():
        return
    _print_remarks(report)
    print(f"{asked.out}: {len(report.layers)} tensors in {report.seconds:.1f} s")
    for file, digest in report.sha256.items():
        print(f"sha256 {digest}  {file}")
    if asked.lora is not None:
        try:
            _print_export(asked.out, work.recipe.base, adapter, asked.lora)
        except MergeError as error:
            raise MergeError(f"'{asked.out}' holds the merge, but no adapter of it was written: {error}") from None


def _export(asked: argparse.Namespace) -> None:
    check_rank(asked.rank)
    recipe = folder_of(asked.model) / "recipe.yaml"
    if not asked.base and not recipe.is_file():
        raise MergeError(
            f"'{asked.model}' has no recipe.yaml that names its base. Name the model it was made from: --base MODEL."
        )
    _print_export(asked.model, asked.base or Recipe.read(recipe).base, asked.out, asked.rank)


def _print_export(model: str, base: str, out: str, rank: int) -> None:
    job = export_lora(model, base, out, rank)
    while True:
        try:
            name, error = next(job)
        except StopIteration as end:
            report = end.value
            break
        print(f"{name}: relative error {error:.3g}")
    for name, why in report.left_out.items():
        print(f"not exported: {name}: {why}")
    for note in report.notes:
        print(f"note: {note}")
    if report.rank < rank:
        print(f"note: no matrix has rank {rank}; {report.rank}, the highest of any, holds all of every change.")
    print(f"{out}: {len(report.errors)} matrices at rank {report.rank}, largest relative error {report.worst:.3g}")


def _push(asked: argparse.Namespace) -> None:
    print(push(asked.folder, asked.repo, private=asked.private))


def _check(asked: argparse.Namespace) -> int:
    check_places(asked.json)
    found = check(Recipe.read(asked.recipe))
    print("\n".join(found.lines()))
    if asked.json:
        written_to(asked.json, found.to_json())
    return 1 if found.problems else 0


def _inspect(asked: argparse.Namespace) -> None:
    check_places(asked.json)
    work = plan(Recipe.read(asked.recipe))
    job = inspect(work, device_named(asked.device), asked.workers, asked.diagnose)
    report = followed(job, len(work.names))
    if not speaks():
        return
    print(_table(report))
    _print_remarks(report)
    if asked.json:
        written_to(asked.json, report.to_json())


def _align(asked: argparse.Namespace) -> None:
    options = {"rotations": not asked.permute_only, "prompts": asked.data}
    facts = walked(realigned(asked.expert, asked.to, asked.out, asked.how, **options))
    objective, gap = facts["objective"], facts["difference"]
    print(f"{asked.out}: the same function" + (f", max |Δ outputs| {gap:.1e}" if gap is not None else ", not run"))
    print(
        f"relative distance to {asked.to}: {facts['distance before']:.4f} before, {facts['distance after']:.4f} after"
    )
    print(f"cosine of the weights: {' → '.join(f'{value:.4f}' for value in objective)}")
    print(
        f"matched by {facts['how']}: mean correlation {facts['mean correlation']:.3f} over "
        f"{len(facts['correlations'])} groups"
    )


def _app(asked: argparse.Namespace) -> None:
    from mergelab.page import launch  # gradio: seconds to import

    try:
        launch(server_port=asked.port)
    except OSError as error:
        raise MergeError(f"Cannot open the page: {error}") from None


def _print_remarks(report: Report) -> None:
    for note in report.notes:
        print(f"note: {note}")
    for name, why in report.skipped.items():
        print(f"not merged: {name}: {why}")


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
