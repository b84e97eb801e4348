"""The command `mergelab export`: a model as a LoRA adapter of its base."""

import argparse

from mergelab.errors import MergeError
from mergelab.files.sources import folder_of
from mergelab.merging.export import check_rank, export_lora
from mergelab.recipes.recipe import Recipe


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("model", metavar="MODEL", help="a folder that mergelab has written, or any full model")
    verb.add_argument("out", metavar="OUT_DIR", help="a folder that does not exist yet")
    verb.add_argument("--rank", type=int, required=True, help="of every matrix in the adapter")
    verb.add_argument("--base", help="the model that it is an adapter of (default: that of MODEL's recipe.yaml)")


def run(asked: argparse.Namespace) -> None:
    """Export, and say what that costs."""
    check_rank(asked.rank)
    recipe = folder_of(asked.model) / "recipe.yaml"
    if not asked.base and not recipe.is_file():
        raise MergeError(
            f"'{asked.model}' has no recipe.yaml that names its base. Name the model it was made from: --base MODEL."
        )
    print_export(asked.model, asked.base or Recipe.read(recipe).base, asked.out, asked.rank)


def print_export(model: str, base: str, out: str, rank: int) -> None:
    """Export a model, and print each matrix as it is done."""
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
