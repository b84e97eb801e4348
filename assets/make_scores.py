"""Makes what the Scores, Sweep and Compare tabs open with: `python assets/make_scores.py` (half a minute)."""

import json
from dataclasses import replace

from mergelab import METHODS, Recipe, result
from mergelab.lab.lab import START, Lab, by_method
from mergelab.lab.shipped import BOARD, COMPARISON, PAIR, SWEEP
from mergelab.scores.knobs import knobs_of, sensible_range, spread

RIVALS = ("linear", "task_arithmetic", "ties", "drm_h", "tsv_m")


def main() -> None:
    lab, start = Lab(), Recipe.read(START)
    recipes = {METHODS[start.method].title: start} | {METHODS[name].title: by_method(start, name) for name in RIVALS}
    board = result(
        lab.scoreboard(start, {title: result(lab.merged(recipe)).folder for title, recipe in recipes.items()})
    )
    low, high, count = sensible_range(eta := knobs_of(METHODS["star"], len(start.experts))["eta"])
    sweep = result(lab.sweep(start, "eta", spread(low, high, count, eta.step)))
    comparison = result(lab.compare(*(result(lab.merged(recipes[METHODS[name].title])) for name in PAIR)))
    spectra = {n: tuple(tuple(float(f"{v:.6g}") for v in one) for one in two) for n, two in comparison.spectra.items()}
    comparison = replace(comparison, spectra=spectra)  # as many digits as a picture needs
    for path, found in ((BOARD, board), (SWEEP, sweep), (COMPARISON, comparison)):
        path.write_text(json.dumps(found.to_dict(), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
