"""Measures what the lessons do not wait for, and scores the merges that they speak of.

`python assets/make_lessons.py` writes assets/analyses/lessons.json, in some minutes.
"""

import json
from collections.abc import Sequence

from mergelab.lab.lab import Lab
from mergelab.lessons.answers import ANSWERS, SCORED, Scored, packed
from mergelab.lessons.survey import measured
from mergelab.scores.questions import Questions
from mergelab.scores.sweep_report import SweepReport
from mergelab.tasks import tasks


def scored(lab: Lab, wanted: Scored, values: Sequence[float] | None = None) -> SweepReport:
    """One sweep of the lessons, or some values of it, measured now."""
    asked = wanted.asked and [Questions(task, tasks()[task].test) for task in wanted.asked]
    job = lab.sweep(wanted.recipe, wanted.knob, values or wanted.values, asked)
    try:
        while True:
            next(job)
    except StopIteration as end:
        return end.value


def main() -> None:
    lab = Lab(device="cpu")
    found = {"survey": measured()} | {name: packed(scored(lab, wanted)) for name, wanted in SCORED.items()}
    ANSWERS.write_text(json.dumps(found, allow_nan=False, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
