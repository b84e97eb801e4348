"""The command `mergelab align`: a model in another one's coordinates."""

import argparse
from pathlib import Path

from mergelab.commands.progress import walked
from mergelab.merging.realign import WAYS, realigned


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("expert", metavar="EXPERT", help="the model whose neurons are put in order")
    verb.add_argument("--to", metavar="REFERENCE", required=True, help="the model whose order they take")
    verb.add_argument("--out", metavar="DIR", required=True, help="a folder that does not exist yet")
    verb.add_argument("--how", default="weights", choices=WAYS, help="what is compared (default: weights)")
    verb.add_argument(
        "--data", metavar="FILE", type=Path, help="calibration prompts for activations and best, a line each"
    )
    verb.add_argument("--permute-only", action="store_true", help="no rotations inside heads: every number is kept")


def run(asked: argparse.Namespace) -> None:
    """Align, write, and print how near they are."""
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
