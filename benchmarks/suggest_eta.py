"""How good is an η that is suggested from the spectra alone? STAR on the bundled experts, as Markdown tables.

`python benchmarks/suggest_eta.py` sweeps η anew for five sets of experts (minutes on two cores) and says, for each
rule, which η it suggests and how many points of exact match that η loses against the best η of the sweep. The
suggestion is rounded to the sweep's grid of 5.
"""

import json
import sys
from pathlib import Path

from torch import Tensor, special

from mergelab import result
from mergelab.lab.lab import Lab
from mergelab.maths.suggestion import kept, rank_growing
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.scores.suggest import in_use, suggested_eta

Sides = tuple[int, int]  # of the matrix: the smaller, the larger

FULL = ("french", "german", "english", "spanish", "morse", "reverse", "roman", "sort")
LORA = ("french-lora", "german-lora", "english-lora", "morse-lora")
SETS = {f"{n} full experts": FULL[:n] for n in (2, 4, 8)} | {f"{n} LoRA experts": LORA[:n] for n in (2, 4)}
GRID = tuple(range(10, 101, 5))


def sized(values: Tensor, experts: int, sides: Sides) -> float:
    """The share at which what is kept, scaled back, is 1.5 times as large as the change: λ = 1.5/T, as it were."""
    return kept(values, rank_growing(values, 1.5))


def balanced(values: Tensor, experts: int, sides: Sides) -> float:
    """The share in as many directions as the energy is spread over: r = exp H(σ²/Σσ²), Roy & Vetterli (2007)."""
    energy = values.square()
    return kept(values, round(float(special.entr(energy / energy.sum()).sum().exp())))


def elbow(values: Tensor, experts: int, sides: Sides) -> float:
    """The share at the point where the running sum lies farthest above the straight line of a flat spectrum."""
    line = values.new_ones(len(values)).cumsum(0) / sides[0]
    return kept(values, int((values.cumsum(0) / values.sum() - line).argmax()) + 1)


def noise_edge(values: Tensor, experts: int, sides: Sides) -> float:
    """The share above the optimal hard threshold for white noise of unknown strength (Gavish & Donoho 2014).

    σ > ω(β)·median(σ), β = smaller side / larger, ω(β) ≈ 0.56β³ − 0.95β² + 1.82β + 1.43. The median counts the zeros,
    and where it is zero itself (a low rank) all is kept.
    """
    ratio, full = sides[0] / sides[1], values.new_zeros(sides[0])
    full[: len(values)] = values
    threshold = (0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43) * float(full.median())
    return kept(values, int((values > threshold).sum()))


RULES = {
    "the size of one expert's change (in use)": in_use,
    "1.5 times the size": sized,
    "energy's effective rank": balanced,
    "elbow of the running sum": elbow,
    "noise edge (Gavish & Donoho)": noise_edge,
    "always 40 (the paper's default)": lambda *_: 0.4,
    "always 60": lambda *_: 0.6,
}


def measured(lab: Lab, names: tuple[str, ...]) -> tuple[dict[int, float], dict[str, int]]:
    """The mean exact match at each η, and what each rule suggests."""
    recipe = Recipe("numbers/base", tuple(Expert(f"numbers/{name}") for name in names), "star")
    report = result(lab.analyse(recipe))
    swept = result(lab.sweep(recipe, "eta", GRID))
    scores = {int(point.value): point.mean.value for point in swept.points}
    return scores, {title: suggested_eta(report, rule) for title, rule in RULES.items()}


def main() -> None:
    """Print the tables; with a file name, keep the numbers there as JSON too."""
    lab, found = Lab(device="cpu"), {}
    for title, names in SETS.items():
        found[title] = measured(lab, names)
        print(f"measured {title}", file=sys.stderr, flush=True)
    print_tables(found)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(found))


def print_tables(found: dict[str, tuple[dict[int, float], dict[str, int]]]) -> None:
    """The curves, and what each rule loses against their tops."""
    print("| η | " + " | ".join(map(str, GRID)) + " |\n|---|" + "---|" * len(GRID))
    for title, (scores, _) in found.items():
        print(f"| {title} | " + " | ".join(f"{100 * scores[eta]:.1f}" for eta in GRID) + " |")
    print("\n| rule: η suggested (points lost) | " + " | ".join(SETS) + " | mean loss | worst |")
    print("|---|" + "---|" * (len(SETS) + 2))
    for rule in RULES:
        cells, losses = [], []
        for scores, suggested in found.values():
            near = min(GRID, key=lambda eta: abs(eta - suggested[rule]))
            losses.append(100 * (max(scores.values()) - scores[near]))
            cells.append(f"{suggested[rule]} ({losses[-1]:.1f})")
        print(f"| {rule} | " + " | ".join(cells) + f" | {sum(losses) / len(losses):.1f} | {max(losses):.1f} |")


if __name__ == "__main__":
    main()
