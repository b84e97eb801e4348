"""How good is an η that is suggested from the spectra alone? STAR on the bundled experts, as Markdown tables.

`python benchmarks/suggest_eta.py` sweeps η anew for five sets of experts (minutes on two cores) and says, for each
rule, which η it suggests and how many points of exact match that η loses against the best η of the sweep. The
suggestion is rounded to the sweep's grid of 5.
"""

import json
import sys
from pathlib import Path

from mergelab import result
from mergelab.lab.lab import Lab
from mergelab.maths.suggestion import balanced, elbow, noise_edge, restored, sized
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.scores.suggest import suggested_eta

FULL = ("french", "german", "english", "spanish", "morse", "reverse", "roman", "sort")
LORA = ("french-lora", "german-lora", "english-lora", "morse-lora")
SETS = {f"{n} full experts": FULL[:n] for n in (2, 4, 8)} | {f"{n} LoRA experts": LORA[:n] for n in (2, 4)}
GRID = tuple(range(10, 101, 5))
RULES = {
    "the size of one expert's change (in use)": restored,
    "1.5 times the size": sized,
    "energy's effective rank": balanced,
    "elbow of the running sum": elbow,
    "noise edge (Gavish & Donoho)": noise_edge,
    "always 40 (the paper's default)": lambda values, *_: 0.4,
    "always 60": lambda values, *_: 0.6,
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
