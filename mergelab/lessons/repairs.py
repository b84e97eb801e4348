"""Two more stories of the Repair tab, in a few numbers: shipped, because running them takes half a minute."""

import json
from functools import cache
from statistics import fmean

from mergelab.lessons.answers import ANSWERS
from mergelab.repair.outcome import EXPERT, MERGED, REPAIRED, Outcome

TOLD = {"family": "Digits: four experts of one base", "llamas": "Numbers: two unrelated Llamas"}  # names in STORIES


@cache
def repairs() -> dict[str, dict[str, float]]:
    """The shipped numbers, as `summed_up` makes them."""
    return json.loads(ANSWERS.read_text(encoding="utf-8"))["repairs"]


def summed_up(outcome: Outcome) -> dict[str, float]:
    """Means over the tasks: the scores, and what is left of the expert's variance where most is lost."""
    scores = {kind: fmean(report.scores[kind] for report in outcome.reports) for kind in (MERGED, REPAIRED, EXPERT)}
    sites = list(zip(*(report.channels for report in outcome.reports)))
    left = {
        f"left, {stage}": min(fmean(c.ratio(stage) for c in site) for site in sites) for stage in (MERGED, REPAIRED)
    }
    return {name: float(f"{value:.6g}") for name, value in (scores | left).items()}
