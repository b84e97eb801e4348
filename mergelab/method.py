"""What a merge method is: a function of one Layer and a few bounded knobs, and the table of all of them.

`@merge_method` reads a function's signature and enters it in METHODS; the page, the command line and the contract tests
are drawn from that table. This room knows no method by name and no file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, getdoc, signature
from keyword import iskeyword
from typing import Any, get_type_hints

import torch
from torch import Tensor

from mergelab.errors import MergeError, brief, did_you_mean
from mergelab.maths import spectral
from mergelab.maths.spectral import Delta, Factors
from mergelab.report import Fact
from mergelab.varying import mapped, well_formed


@dataclass(frozen=True)
class Layer:
    """One parameter of the merge: the unit of memory, of work and of reporting.

    base: float32 (float64 where the base is), any shape. deltas: one per expert, expert minus base, in that dtype;
    dense in the base's shape, or LowRank. weights: (expert,). decompose: the tensor is a matrix whose singular
    directions mean something (not an embedding).
    """

    name: str
    base: Tensor
    deltas: tuple[Delta, ...]
    weights: Tensor
    decompose: bool = False

    @cached_property
    def dense(self) -> Tensor:
        """All deltas with their entries. (expert, *shape)"""
        return torch.stack([spectral.dense(delta) for delta in self.deltas])

    @cached_property
    def factors(self) -> tuple[Factors, ...]:
        """Singular values and vectors of each delta; only for a layer to decompose. Computed once, on first use."""
        return tuple(spectral.factors(delta) for delta in self.deltas)

    def each(self, value: float | tuple[float, ...]) -> tuple[float, ...]:
        """A setting as one number per expert: of a knob with `each`, experts may have values of their own."""
        return value if isinstance(value, tuple) else (value,) * len(self.deltas)

    def weighted(self, stack: Tensor) -> Tensor:
        """A stack (expert, *shape) times each expert's weight."""
        return stack * self.weights.to(stack.dtype).view(-1, *[1] * (stack.dim() - 1))


@dataclass(frozen=True)
class Merged:
    """A method's answer for one layer.

    delta: what to add to the base, the layer's shape. facts: numbers worth plotting, one per expert or one for the
    layer. curves: sequences worth plotting (a joint spectrum, who owns which direction), (k,) or (expert, k) each.
    """

    delta: Tensor
    facts: Mapping[str, Fact] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Knob:
    """The range and help of a setting that is a number.

    `start` is where the page puts it, where that differs from a recipe's default. `each`: a recipe may give every
    expert a value of its own; the method then gets a tuple, one number per expert (`Layer.each` makes it one always).
    """

    low: float
    high: float
    help: str
    step: float | None = None
    start: float | None = None
    each: bool = False


@dataclass(frozen=True)
class Switch:
    """The help of a setting that is on or off."""

    help: str


@dataclass(frozen=True)
class Setting:
    """One setting of a method, as a recipe writes it."""

    name: str
    default: Any
    knob: Knob | Switch

    @property
    def each(self) -> bool:
        """Whether experts may have values of their own."""
        return isinstance(self.knob, Knob) and self.knob.each

    def checked(self, value: Any, method: str) -> Any:
        """The value, or one that varies (varying.py), if the knob allows all of it; else MergeError."""
        if isinstance(value, tuple) and self.each:
            return tuple(self._checked(item, method) for item in value)
        return mapped(well_formed(value, f"'{self.name}' of {method}"), lambda scalar: self._checked(scalar, method))

    def _checked(self, value: Any, method: str) -> Any:
        if isinstance(self.knob, Switch):
            if not isinstance(value, bool):
                raise MergeError(f"'{self.name}' of {method} must be true or false, not {brief(value)}.")
            return value
        low, high = self.knob.low, self.knob.high
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:  # NaN too
            raise MergeError(
                f"'{self.name}' of {method} must be a number from {low:g} to {high:g}, not {brief(value)}."
            )
        return float(value)


@dataclass(frozen=True)
class MergeMethod:
    """An entry of METHODS: call it with a Layer and settings, get a Merged."""

    name: str  # as a recipe writes it
    title: str  # as a person reads it
    paper: str  # arXiv number, or ""
    fewest: int  # experts that it needs
    settings: tuple[Setting, ...]
    function: Callable[..., Merged]

    @property
    def summary(self) -> str:
        """One sentence: what it does."""
        return self.doc.split("\n", 1)[0]

    @property
    def doc(self) -> str:
        """The function's docstring: summary, equations, where it differs from the authors' code."""
        return getdoc(self.function) or ""

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings with their values; MergeError for an unknown one or one out of range."""
        known = {setting.name: setting for setting in self.settings}
        for key in given:
            if key not in known:
                raise MergeError(f"{self.title} has no setting '{key}'. {did_you_mean(key, known)}".rstrip())
        return {name: s.checked(given.get(name, s.default), self.title) for name, s in known.items()}

    def checked_own(self, given: Mapping[str, Any], expert: str) -> dict[str, Any]:
        """The settings that an expert has of its own; MergeError for one that cannot differ from expert to expert."""
        known = {setting.name: setting for setting in self.settings if setting.each}
        for key in given:
            if key not in known:
                free = ", ".join(f"'{name}'" for name in ("weight", *known))
                raise MergeError(
                    f"Expert '{expert}' has its own '{key}', but with {self.title} only {free} can differ from expert "
                    "to expert. Other settings of the method stand under the recipe's own 'parameters'."
                )
        return {name: known[name].checked(value, self.title) for name, value in given.items()}

    def __call__(self, layer: Layer, **settings: Any) -> Merged:
        return self.function(layer, **{_argument(name): value for name, value in self.checked(settings).items()})


METHODS: dict[str, MergeMethod] = {}


def merge_method(title: str, *, paper: str = "", fewest: int = 1) -> Callable:
    """Enter a function in METHODS, under its own name; its keyword arguments are its settings."""

    def enter(function: Callable[..., Merged]) -> MergeMethod:
        hints = get_type_hints(function, include_extras=True)
        keywords = [p for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
        settings = tuple(Setting(p.name.rstrip("_"), p.default, _knob(hints[p.name], p.name)) for p in keywords)
        method = MergeMethod(function.__name__, title, paper, fewest, settings, function)
        if METHODS.setdefault(method.name, method) is not method:
            raise TypeError(f"there are two merge methods called '{method.name}'")
        return method

    return enter


def method_named(name: str) -> MergeMethod:
    """The method of that name; MergeError with the nearest name if there is none."""
    if name not in METHODS:
        raise MergeError(f"There is no merge method '{name}'. {did_you_mean(name, METHODS)}")
    return METHODS[name]


def _knob(hint: Any, name: str) -> Knob | Switch:
    notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, (Knob, Switch))]
    if len(notes) != 1:
        raise TypeError(f"setting '{name}' needs one Knob or Switch in its annotation")
    return notes[0]


def _argument(name: str) -> str:
    return f"{name}_" if iskeyword(name) else name  # `lambda` is a recipe's word, and one that Python keeps for itself
