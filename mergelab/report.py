"""What happened: one LayerReport per tensor, one Report per run; JSON both ways. Knows no tensor, file or picture."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

Fact = float | tuple[float, ...]  # one number for the layer, or one per expert

# What each fact says of a tensor, for the page and its report; a method that reports another one adds its line here.
FACTS = {
    "rank kept": "how many singular directions of the expert's change the method keeps",
    "rank kept, share": "the same, as a share of all directions that the matrix has",
    "gain": "the factor by which what is kept is scaled up, so that its nuclear norm is the old one",
    "energy kept": "the share of the squared singular values that is kept",
    "effective rank": "how many directions the change is spread over: exp of the entropy of its singular values",
    "largest singular value": "the strength of the strongest direction of the change",
    "joint rank": "how many directions the experts' common basis has, after the weakest are cut",
    "nuclear norm cut": "the share of the joint nuclear norm that goes with the directions cut",
    "share pruned": "the share of the renormalised entries that is pruned",
    "share of energy": "the share of the joint energy that is this expert's",
    "sign conflicts": "of the entries that any expert moves, the share that two experts move in opposite directions",
    "entries kept": "the share of entries that survive: of each expert's change, or of the merged one",
    "entries wanted": "the share of the merged change's entries that this expert's mask keeps",
    "interference": "how far the experts' singular vectors are from orthogonal to each other: 0 if they are",
    "common singular value": "the strength that every direction of the merged change gets",
    "own directions": "how many directions outside the common ones are this expert's",
    "core, rows": "how many output directions the experts' changes span together",
    "core, columns": "how many input directions the experts' changes span together",
    "directions solved": "how many input directions the closed form solves for",
    "share solved": "how much of all input directions is solved for, the soft filter counted in",
    "norm after calibration": "the nuclear norm of the merged change after calibration, as a share of what it was",
    "cosine with the base": "the cosine between the model's weights and the base's: near 1, the arc is a line",
    "angle": "the angle between the two changes, in degrees; the mean, where each row has its own",
    "widest angle": "the widest angle between two models' weights, in degrees",
    "length of the mean": "how long the mean of the changes' unit vectors is: 1 if all point one way, 0 if they cancel",
    "trust in the mean": "how far the merge goes from the base to the mean of the models; the mean over rows",
    "entries that survive": "of the entries that an expert changes, the share that differ from the base as written",
    "rounding error": "how much of an expert's change the written number format loses, relative to the change",
    "merged rounding error": "how much of the merged change the written number format loses, relative to the change",
    "subspace overlap": "the mean share of an expert's change that lies in the leading directions of another one's",
    "change": "the size of the expert's change, relative to the base's weights (Frobenius norms)",
    "merged change": "the size of the merged change, relative to the base's weights (Frobenius norms)",
    "cosine to the average": "the cosine between the merged change and the average of the experts' changes",
    "cosine of deltas": "the mean cosine between two experts' changes: 0 for unrelated ones, 1 for equal ones",
}


@dataclass(frozen=True)
class LayerReport:
    """One tensor of the merge.

    facts: name -> a number, or one number per expert (in the recipe's order).
    curves: name -> one list per expert, or a single list: singular values and the like; empty unless asked for.
    """

    name: str
    shape: tuple[int, ...]
    decomposed: bool
    facts: Mapping[str, Fact] = field(default_factory=dict)
    curves: Mapping[str, tuple] = field(default_factory=dict)
    equal_to_base: tuple[str, ...] = ()  # experts that leave this tensor as it is
    roads: tuple[str, ...] = ()  # how its factorisations were computed

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(vars(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "LayerReport":
        """The one that `to_json` wrote."""
        return cls(**_frozen(json.loads(text)))

    @property
    def full_rank(self) -> int:
        """The number of singular values that a matrix of this shape has."""
        return min(self.shape) if len(self.shape) == 2 else 0


@dataclass(frozen=True)
class Report:
    """A whole run: what was asked, what each tensor said, and all that was not merged."""

    recipe: Mapping[str, Any]
    experts: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)  # tensor -> why it was not merged
    notes: tuple[str, ...] = ()
    alignment: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # expert -> distances, objective, …
    sha256: Mapping[str, str] = field(default_factory=dict)  # written weight file -> its hash
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # source -> its files' hashes, its commit
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # task -> who -> exact match, 0…1

    @property
    def decomposed(self) -> tuple[LayerReport, ...]:
        """The layers that have a spectrum."""
        return tuple(layer for layer in self.layers if layer.decomposed)

    @property
    def facts(self) -> tuple[str, ...]:
        """The names of all facts of the decomposed layers, the method's own first."""
        return tuple(dict.fromkeys(fact for layer in self.decomposed for fact in layer.facts))

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: one row per decomposed layer and expert, a column per fact."""
        rows = []
        for layer in self.decomposed:
            for i, expert in enumerate(self.experts):
                numbers = [layer.facts.get(fact, "") for fact in self.facts]
                cells = [number[i] if isinstance(number, tuple) else number for number in numbers]
                rows.append([layer.name, "×".join(map(str, layer.shape)), expert, *cells])
        return ["module", "shape", "expert", *self.facts], rows

    def to_json(self, indent: int | None = 1) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote."""
        data = json.loads(text)
        layers = tuple(LayerReport(**_frozen(layer)) for layer in data.pop("layers"))
        data["alignment"] = _frozen(data.get("alignment", {}))
        return cls(layers=layers, **(data | {key: tuple(data[key]) for key in ("experts", "notes")}))


@dataclass(frozen=True)
class Channels:
    """One site of a network: mean and variance of each channel in the expert, the merged and the repaired model.

    Each is one number per channel; those of the repaired model are empty before a repair.
    """

    site: str
    expert_mean: tuple[float, ...]
    expert_var: tuple[float, ...]
    merged_mean: tuple[float, ...]
    merged_var: tuple[float, ...]
    repaired_mean: tuple[float, ...] = ()
    repaired_var: tuple[float, ...] = ()

    def ratio(self, whose: str = "merged") -> float:
        """The mean variance over channels, relative to the expert's: 1 is none lost. whose: merged or repaired."""
        goal = fmean(self.expert_var)
        return fmean(getattr(self, f"{whose}_var")) / goal if goal else 1.0

    def log2_ratio(self, whose: str = "merged") -> float:
        """The base-2 logarithm of the ratio, as it is plotted: -1 is half of the variance; held at -40."""
        return math.log2(max(self.ratio(whose), 2.0**-40))

    def offset(self, whose: str = "merged") -> float:
        """How far the means lie from the expert's, relative to its deviations: ‖μ - μ_e‖ / ‖σ_e‖."""
        away = [(a - b) ** 2 for a, b in zip(getattr(self, f"{whose}_mean"), self.expert_mean)]
        return math.sqrt(sum(away) / (sum(self.expert_var) or 1.0))


@dataclass(frozen=True)
class RepairReport:
    """The repair of one merged model for one task: how, what it found at each site, and what it was worth.

    scores: who -> exact match or accuracy, 0…1: "base", "expert", "merged", "repaired", "base, repaired" and, on
    request, "without the expert" and "without the expert, repaired". unfolded: sites that the written weights lack.
    difference: the largest |hooked - folded| of the outputs.
    """

    task: str
    target: str
    mode: str
    samples: int
    tokens: int
    channels: tuple[Channels, ...]
    dead: int = 0
    clamped: int = 0
    skipped: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    unfolded: tuple[str, ...] = ()
    difference: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratios(self) -> tuple[float, float]:
        """The geometric mean over sites of the variance ratio, before and after."""
        logs = [[one.log2_ratio(whose) for one in self.channels] for whose in ("merged", "repaired")]
        return 2 ** fmean(logs[0]), 2 ** fmean(logs[1])

    def to_json(self, indent: int | None = 1) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "RepairReport":
        """The report that `to_json` wrote."""
        data = json.loads(text)
        channels = tuple(Channels(**_frozen(one)) for one in data.pop("channels"))
        return cls(channels=channels, **(data | {key: tuple(data[key]) for key in ("unfolded", "notes")}))


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
