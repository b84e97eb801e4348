"""Measures what the lessons do not wait for: the merges, stories and changes that they speak of.

`python assets/make_lessons.py` writes assets/analyses/lessons.json, in some minutes.
"""

import json
from typing import Any

from mergelab import result
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab
from mergelab.lessons.answers import ANSWERS, SCORED, Scored, packed
from mergelab.lessons.repairs import TOLD, summed_up
from mergelab.lessons.survey import measured
from mergelab.repair.outcome import Trial
from mergelab.repair.stories import STORIES
from mergelab.scores.questions import Questions
from mergelab.tasks import tasks


def scored(lab: Lab, wanted: Scored) -> dict[str, Any]:
    """The answers of one sweep."""
    asked = wanted.asked and [Questions(task, tasks()[task].test) for task in wanted.asked]
    return packed(result(lab.sweep(wanted.recipe, wanted.knob, wanted.values, asked)))


def told(lab: RepairLab, name: str) -> dict[str, float]:
    """One story of the Repair tab, summed up."""
    recipe, align = STORIES[name]
    return summed_up(result(lab.tell(Trial(recipe), align)).outcome)


def main() -> None:
    lab = Lab(device="cpu")
    found: dict[str, Any] = {"survey": measured()}
    found["repairs"] = {key: told(RepairLab(lab), name) for key, name in TOLD.items()}
    found |= {name: scored(lab, wanted) for name, wanted in SCORED.items()}
    ANSWERS.write_text(json.dumps(found, allow_nan=False, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
