"""What happened: one LayerReport per tensor, one Report per run; JSON both ways. Knows no tensor, file or picture."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Fact = float | tuple[float, ...]  # one number for the layer, or one per expert

# What each fact says of a tensor, for the page and the README; a method that reports another one adds its line here.
FACTS = {
    "rank kept": "how many singular directions of the expert's change STAR keeps",
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
    "entries kept": "the share of the change's entries that survive trimming",
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
    sha256: Mapping[str, str] = field(default_factory=dict)  # written weight file -> its hash
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)

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
        return cls(layers=layers, **(data | {key: tuple(data[key]) for key in ("experts", "notes")}))


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
