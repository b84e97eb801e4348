"""The command `mergelab merge`: a recipe's merge, as a new folder."""

import argparse
import sys
from dataclasses import replace

from mergelab.commands.export import print_export
from mergelab.commands.progress import followed
from mergelab.commands.verb import add_work, print_remarks
from mergelab.errors import MergeError
from mergelab.merging.devices import device_named, speaks
from mergelab.merging.export import check_rank
from mergelab.merging.journal import fingerprint
from mergelab.merging.merge import merge
from mergelab.merging.output import free_place, is_unfinished
from mergelab.planning.plan import plan
from mergelab.recipes.mergekit_yaml import size
from mergelab.recipes.recipe import DTYPES, Recipe


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    add_work(verb)
    verb.add_argument("out", metavar="OUT_DIR", help="a folder that does not exist yet")
    verb.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: the recipe's, else the base's)")
    verb.add_argument(
        "--shard-size", metavar="SIZE", help="most bytes of a weight file, 5GB say (default: the base's files)"
    )
    verb.add_argument("--lora", type=int, metavar="RANK", help="write OUT_DIR-lora, too: the merge as an adapter")


def run(asked: argparse.Namespace) -> None:
    """Merge, and say what there is to remark."""
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
    print_remarks(report)
    print(f"{asked.out}: {len(report.layers)} tensors in {report.seconds:.1f} s")
    for file, digest in report.sha256.items():
        print(f"sha256 {digest}  {file}")
    if asked.lora is not None:
        try:
            print_export(asked.out, work.recipe.base, adapter, asked.lora)
        except MergeError as error:
            raise MergeError(f"'{asked.out}' holds the merge, but no adapter of it was written: {error}") from None
