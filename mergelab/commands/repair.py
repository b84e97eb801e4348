"""The command `mergelab repair`: a merge, or a recipe of one, repaired for each of its tasks."""

import argparse
import tempfile
from pathlib import Path

from mergelab.commands.progress import followed, walked
from mergelab.errors import MergeError
from mergelab.files.sources import folder_of
from mergelab.merging.merge import merge
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Recipe
from mergelab.repair import MODES, PRESETS, How
from mergelab.repair.job import repair_table, repairs
from mergelab.repair.order import AUTO, Order, Wanted, check_order
from mergelab.table import aligned


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    word = verb.add_argument
    word(
        "merged", metavar="RECIPE.yaml|MERGED", help="a recipe, which is merged first, or the folder of a merged model"
    )
    word("--task", action="append", default=[], metavar="NAME=EXPERT", help="repeat it; default: the recipe's experts")
    word("--data", action=_DataOfTask, metavar="FILE", help="of the --task before it: prompts as .txt or .jsonl, or "
        "inputs as .safetensors; bundled experts need none")  # fmt: skip
    word("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    word("--target", default="task", choices=("task", "mean"), help="each task's own expert (default), or their mean")
    word("--mode", default=AUTO, help=f"auto (default: affine where it folds, else rms), {', '.join(MODES)}")
    word("--sites", default="foldable", help=f"{', '.join(PRESETS)}, or module|out,module|in,… (default: foldable)")
    word("--samples", type=int, default=32, help="calibration samples a task, 4 to 512 (default: 32)")
    word("--clamp", type=float, default=100.0, help="no scale beyond 1/CLAMP … CLAMP (default: 100)")
    word("--sidecar", action="store_true", help="write one body and a small file per task, instead of a model per task")
    word("--without", action="store_true", help="score also the merge without each task's expert, before and after")
    word("--plain", action="store_true", help="prompts are plain text, even where the expert has a chat template")
    word("--unaligned", action="store_true", help="go on although the experts' channels do not correspond")


class _DataOfTask(argparse.Action):
    """Remembers which --task a --data follows: (number of tasks so far, file)."""

    def __call__(self, parser, asked, value, option=None) -> None:
        asked.data = [*(asked.data or []), (len(asked.task), value)]


def run(asked: argparse.Namespace) -> None:
    """Repair, score, write, and print a table."""
    with tempfile.TemporaryDirectory(prefix="mergelab-") as scratch:
        reports = walked(repairs(_order(asked, Path(scratch)), asked.out))
    header, *rows = repair_table(reports)
    print(aligned(header, rows))
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        print(f"note: {note}")
    print(f"{asked.out}: {len(reports)} {'sidecars beside one body' if asked.sidecar else 'repaired models'}")


def _order(asked: argparse.Namespace, scratch: Path) -> Order:
    """What the words of the command line ask for; a recipe is merged into `scratch` first, once all is checked."""
    given = Path(asked.merged).is_file()
    if given:
        recipe, folder = Recipe.read(asked.merged), scratch / "merged"
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
    same = ("sites", "mode", "target", "samples", "sidecar", "without", "unaligned", "plain")
    how = How(clamp=asked.clamp)
    order = Order(folder, wanted, recipe, how=how, **{key: getattr(asked, key) for key in same})
    check_order(order)
    if given:
        work = plan(recipe)
        followed(merge(work, folder), len(work.names))
    return order
