"""What to try, and what was found: Trial and Outcome, as the Repair tab asks and shows them; JSON and tables.

Nouns alone: nothing is run here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mergelab.recipes.recipe import Recipe
from mergelab.repair import How
from mergelab.report import Channels, RepairReport

Sample = tuple[str, str | None]  # (prompt, answer); None: the expert is to answer
PLAIN, MERGED, REPAIRED, EXPERT, BASE = "plain average", "merged", "repaired", "expert", "base"
WITHOUT = "without the expert"


@dataclass(frozen=True)
class Trial:
    """What to try. recipe: what to merge, and whether its experts are aligned first; the rest: how to repair it.

    samples: calibration samples a task. own_heads: a classifier keeps each expert's own last layer. without: score also
    the merge without the task's expert. lines: the user's own samples, in place of the bundled ones. tasks: the experts
    to repair for, by name; none named: all.
    """

    recipe: Recipe
    target: str = "task"
    mode: str = "affine"
    sites: str = "foldable"
    samples: int = 32
    clamp: float = 100.0
    own_heads: bool = True
    without: bool = False
    lines: tuple[Sample, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def how(self) -> How:
        return How(self.mode, self.clamp)


@dataclass(frozen=True)
class Matching:
    """How the experts were aligned. objective: what was made large, sweep by sweep. error: of the self-test, which puts
    neurons in a random order and compares outputs. before, after: correlations of channels with the same number."""

    kind: str = "none"
    objective: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a trial found. plain: the merge without alignment, task -> channels. theory: the share of its variance that
    an average keeps at each site, by the correlation of the experts there."""

    trial: Mapping[str, Any]
    reports: tuple[RepairReport, ...] = ()
    plain: Mapping[str, tuple[Channels, ...]] = field(default_factory=dict)
    theory: tuple[float, ...] = ()
    matching: Matching = field(default_factory=Matching)
    tested: Mapping[str, int] = field(default_factory=dict)  # task -> how many prompts or pictures it was scored on
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: one row per task and site, with the variance ratios and the offset of the means."""
        rows = []
        for report in self.reports:
            plain = {one.site: one.ratio() for one in self.plain.get(report.task, ())}
            for i, one in enumerate(report.channels):
                offsets = one.offset(), one.offset(REPAIRED) if one.repaired_var else ""
                ratios = plain.get(one.site, ""), one.ratio(), one.ratio(REPAIRED) if one.repaired_var else ""
                rows.append([report.task, one.site, *ratios, *offsets, self.theory[i] if self.theory else ""])
        heads = ["ratio, plain", "ratio, merged", "ratio, repaired", "offset, merged", "offset, repaired"]
        return ["task", "site", *heads, "(1+(N-1)ρ)/N"], rows

    def score_table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: one row per task, a column per score."""
        kinds = list(dict.fromkeys(kind for report in self.reports for kind in report.scores))
        return ["task", *kinds], [[r.task, *(r.scores.get(kind, "") for kind in kinds)] for r in self.reports]

    def to_json(self, indent: int | None = None) -> str:
        """All of it as JSON text."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """The outcome that `to_json` wrote."""
        data = json.loads(text)
        reports = tuple(RepairReport.from_json(json.dumps(report)) for report in data.pop("reports"))
        plain = {task: tuple(Channels(**_tuples(one)) for one in found) for task, found in data.pop("plain").items()}
        matching = Matching(**_tuples(data.pop("matching")))
        return cls(reports=reports, plain=plain, matching=matching, **_tuples(data))


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
