"""The lab without a browser, a verb each. Exits with 0, or with 1 and a line that says why."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergelab.align import HOW
from mergelab.commands.report import add_report
from mergelab.commands.sweep import add_sweep
from mergelab.errors import MergeError
from mergelab.files.push import push
from mergelab.files.sources import folder_of
from mergelab.merging.devices import ProcessLost, device_named, is_alone, leave, speaks
from mergelab.merging.export import export_lora
from mergelab.merging.merge import Progress, inspect, merge
from mergelab.merging.realign import realigned
from mergelab.planning.check import check
from mergelab.planning.plan import plan
from mergelab.recipes.mergekit_yaml import size
from mergelab.recipes.recipe import DTYPES, Recipe
from mergelab.repair import MODES, PRESETS, How
from mergelab.repair.job import Order, Wanted, repair_table, repairs
from mergelab.report import Fact, Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    asked = _parser().parse_args(arguments)
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
    verb.add_argument("--how", default="weights", choices=HOW[1:], help="what is compared (default: weights)")
    verb.add_argument("--data", metavar="FILE", type=Path, help="calibration prompts for activations, one a line")
    verb.add_argument("--permute-only", action="store_true", help="no rotations inside heads: every number is kept")
    verb.set_defaults(verb=_align)

    verb = verbs.add_parser("repair", help="give a merge the statistics that each task's expert has, and write it")
    _add_repair(verb)
    verb.set_defaults(verb=_repair)

    verb = verbs.add_parser("app", help="open the page (needs the app's packages)")
    verb.add_argument("--port", type=int, help="where to listen (default: the first free one from 7860)")
    verb.set_defaults(verb=_app)
    return parser


def _add_recipe(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", metavar="RECIPE.yaml")
    verb.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    verb.add_argument("--workers", type=int, metavar="N", help="tensors at a time (default: one per core)")


def _add_repair(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("merged", metavar="RECIPE.yaml|MERGED", help="a recipe, which is merged first, or the folder of a merged model")
    add("--task", action="append", default=[], metavar="NAME=EXPERT", help="repeat it; default: the recipe's experts")
    add("--data", action=_DataOfTask, metavar="FILE", help="of the --task before it: prompts as .txt or .jsonl, or "
        "inputs as .safetensors; bundled experts need none")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    add("--target", default="task", choices=("task", "mean"), help="each task's own expert (default), or their mean")
    add("--mode", default="auto", help=f"auto (default: affine where it folds, else rms), {', '.join(MODES)}")
    add("--sites", default="foldable", help=f"{', '.join(PRESETS)}, or module|out,module|in,… (default: foldable)")
    add("--samples", type=int, default=32, help="calibration samples a task, 4 to 512 (default: 32)")
    add("--clamp", type=float, default=10.0, help="no scale beyond 1/CLAMP … CLAMP (default: 10)")
    add("--sidecar", action="store_true", help="write one body and a small file per task, instead of a model per task")
    add("--without", action="store_true", help="score also the merge without each task's expert, before and after")
    add("--plain", action="store_true", help="prompts are plain text, even where the expert has a chat template")
    add("--unaligned", action="store_true", help="go on although the experts' channels do not correspond")


class _DataOfTask(argparse.Action):
    """Remembers which --task a --data follows: (number of tasks so far, file)."""

    def __call__(self, parser, asked, value, option=None) -> None:
        asked.data = [*(asked.data or []), (len(asked.task), value)]


def _merge(asked: argparse.Namespace) -> None:
    recipe = Recipe.read(asked.recipe)
    recipe = replace(recipe, dtype=asked.dtype, out_dtype=None) if asked.dtype else recipe
    recipe = replace(recipe, shard_size=size(asked.shard_size, "--shard-size")) if asked.shard_size else recipe
    work = plan(recipe)
    report = _followed(merge(work, asked.out, device_named(asked.device), asked.workers), len(work.names))
    if not speaks():
        return
    _print_remarks(report)
    print(f"{asked.out}: {len(report.layers)} tensors in {report.seconds:.1f} s")
    for file, digest in report.sha256.items():
        print(f"sha256 {digest}  {file}")
    if asked.lora:
        _print_export(asked.out, work.recipe.base, f"{asked.out.rstrip('/')}-lora", asked.lora)


def _export(asked: argparse.Namespace) -> None:
    base = asked.base or Recipe.read(Path(asked.model) / "recipe.yaml").base
    _print_export(asked.model, base, asked.out, asked.rank)


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
    print(f"{out}: {len(report.errors)} matrices at rank {rank}, largest relative error {report.worst:.3g}")


def _push(asked: argparse.Namespace) -> None:
    print(push(asked.folder, asked.repo, private=asked.private))


def _check(asked: argparse.Namespace) -> int:
    found = check(Recipe.read(asked.recipe))
    print("\n".join(found.lines()))
    if asked.json:
        _write(asked.json, found.to_json())
    return 1 if found.problems else 0


def _inspect(asked: argparse.Namespace) -> None:
    work = plan(Recipe.read(asked.recipe))
    job = inspect(work, device_named(asked.device), asked.workers, asked.diagnose)
    report = _followed(job, len(work.names))
    if not speaks():
        return
    print(_table(report))
    _print_remarks(report)
    if asked.json:
        _write(asked.json, report.to_json())


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise MergeError(f"Cannot write '{file}': {error.strerror}.") from None


def _align(asked: argparse.Namespace) -> None:
    options = {"rotations": not asked.permute_only, "prompts": asked.data}
    facts = _walked(realigned(asked.expert, asked.to, asked.out, asked.how, **options))
    objective, gap = facts["objective"], facts["difference"]
    print(f"{asked.out}: the same function" + (f", max |Δ outputs| {gap:.1e}" if gap is not None else ", not run"))
    print(
        f"relative distance to {asked.to}: {facts['distance before']:.4f} before, {facts['distance after']:.4f} after"
    )
    print(f"cosine of the weights: {' → '.join(f'{value:.4f}' for value in objective)}")
    print(f"mean matched correlation: {facts['mean correlation']:.3f} over {len(facts['correlations'])} groups")


def _walked(job: Generator[str, None, Any]) -> Any:
    """Walk a job that yields names to its end, with a progress line on a terminal; what it returns."""
    with closing(job):
        try:
            while True:
                _show_progress(next(job))
        except StopIteration as end:
            return end.value
        finally:
            _show_progress("")


def _repair(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="mergelab-") as scratch:
        reports = _walked(repairs(_order(asked, Path(scratch)), asked.out))
    print(_aligned(repair_table(reports)))
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        print(f"note: {note}")
    print(f"{asked.out}: {len(reports)} {'sidecars beside one body' if asked.sidecar else 'repaired models'}")


def _order(asked: argparse.Namespace, scratch: Path) -> Order:
    """What the words of the command line ask for; a recipe is merged into `scratch` first."""
    if Path(asked.merged).is_file():
        recipe, folder = Recipe.read(asked.merged), scratch / "merged"
        work = plan(recipe)
        _followed(merge(work, folder), len(work.names))
    else:
        folder = folder_of(asked.merged)
        recipe = Recipe.read(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    pairs = [task.partition("=") for task in asked.task]
    if wrong := [task for task, (name, _, expert) in zip(asked.task, pairs) if not name or not expert]:
        raise MergeError(f"'--task {wrong[0]}' must be NAME=EXPERT, as in french=numbers/french.")
    files = {number - 1: file for number, file in asked.data or ()}
    if -1 in files:
        raise MergeError(f"'--data {files[-1]}' stands before any --task. Write it behind the task that it is of.")
    wanted = tuple(Wanted(name, expert, files.get(i)) for i, (name, _, expert) in enumerate(pairs))
    if not wanted and recipe:
        wanted = tuple(Wanted(name, e.source) for name, e in zip(recipe.names, recipe.experts))
    how = How(clamp=asked.clamp) if asked.mode == "auto" else How(asked.mode, asked.clamp)
    same = ("sites", "mode", "target", "samples", "sidecar", "without", "unaligned", "plain")
    return Order(folder, wanted, recipe, how=how, **{key: getattr(asked, key) for key in same})


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
    if sys.stderr.isatty() and speaks():
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
    others = len(report.layers) - len(report.decomposed)
    order = f"Experts, in the order of the numbers in a cell: {', '.join(report.experts)}."
    return "\n".join(
        [_aligned(rows), order, f"{others} further tensors are not decomposed (embeddings, norms, biases)."]
    )


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _cell(fact: Fact) -> str:
    return " ".join(f"{number:.4g}" for number in (fact if isinstance(fact, tuple) else (fact,)))


if __name__ == "__main__":
    sys.exit(main())
