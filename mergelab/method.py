"""What a merge method is: a function of one Layer and a few bounded knobs, and the table of all of them.

`@merge_method` reads a function's signature and enters it in METHODS; the page, the command line and the contract tests
are drawn from that table. This room knows no method by name and no file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, getdoc, signature
from keyword import iskeyword
from math import prod
from typing import Any, get_type_hints

import torch
from torch import Tensor

from mergelab.errors import MergeError, brief, did_you_mean
from mergelab.maths import noise, spectral
from mergelab.maths.spectral import Delta, Factors, LowRank, Wanted
from mergelab.recipes.varying import mapped, well_formed
from mergelab.report import Fact


@dataclass(frozen=True)
class Layer:
    """One parameter of the merge: the unit of memory, of work and of reporting.

    base: float32 (float64 where the base is), any shape. deltas: one per expert, expert minus base, in that dtype;
    dense in the base's shape, or LowRank. weights: (expert,). decompose: the tensor is a matrix whose singular
    directions mean something (not an embedding). factorise: (expert's index, wanted) -> Factors of that delta, where
    they are kept somewhere; else they are computed. experts: their names; with the seed, they decide what is random.
    """

    name: str
    base: Tensor
    deltas: tuple[Delta, ...]
    weights: Tensor
    decompose: bool = False
    factorise: Callable[[int, Wanted | None], Factors] | None = None
    experts: tuple[str, ...] = ()
    seed: int = 0

    @cached_property
    def entries(self) -> tuple[Tensor, ...]:
        """Each delta with its entries, in the base's shape; what is dense already is not copied."""
        return tuple(spectral.dense(delta) for delta in self.deltas)

    @cached_property
    def dense(self) -> Tensor:
        """All deltas with their entries, as one new stack. (expert, *shape)"""
        return torch.stack(self.entries)

    @cached_property
    def sum(self) -> Tensor:
        """Σ w_i τ_i, the layer's shape; thin products are multiplied out as one."""
        return spectral.weighted_sum(self.deltas, self.weights.tolist())

    def factors(self, wanted: Wanted | None = None) -> tuple[Factors, ...]:
        """Each delta's singular values and as many leading vectors as `wanted` says (all, if it is None).

        Only for a layer to decompose. What is known already is not computed again, unless more vectors are asked for.
        """
        return tuple(self._factors_of(expert, wanted) for expert in range(len(self.deltas)))

    def _factors_of(self, expert: int, wanted: Wanted | None) -> Factors:
        known = self._known.get(expert)
        if known is None or not known.suffice(wanted):
            made = self.factorise or (lambda expert, wanted: spectral.factors(self.deltas[expert], wanted))
            known = self._known[expert] = made(expert, wanted)
        return known

    @cached_property
    def _known(self) -> dict[int, Factors]:
        return {}

    @cached_property
    def moving(self) -> tuple[int, ...]:
        """The experts that change this tensor at all, by their place."""
        return tuple(i for i, delta in enumerate(self.deltas) if _moves(delta) and self.weights[i] != 0)

    @property
    def mean(self) -> Tensor:
        """(1/T) Σ w_i τ_i: what the spectral methods do to a tensor that is not decomposed."""
        return self.sum / len(self.deltas)

    def each(self, value: float | tuple[float, ...]) -> tuple[float, ...]:
        """A setting as one number per expert: of a knob with `each`, experts may have values of their own."""
        return value if isinstance(value, tuple) else (value,) * len(self.deltas)

    def weighted(self, stack: Tensor) -> Tensor:
        """A stack (expert, *shape) times each expert's weight."""
        return stack * self.weights.to(stack.dtype).view(-1, *[1] * (stack.dim() - 1))

    def noise(self, expert: int, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) for one expert, float32; those of two experts or two layers are independent.

        They depend on the seed, on the names of layer and expert, and on nothing else.
        """
        name = self.experts[expert] if self.experts else expert
        drawn = noise.uniform(prod(shape), noise.key_of(self.seed, self.name, name), self.base.device)
        return drawn.view(shape)


@dataclass(frozen=True)
class Merged:
    """A method's answer for one layer.

    delta: what to add to the base, the layer's shape. facts: numbers worth plotting, one per expert or one for the
    layer. curves: sequences worth plotting (a joint spectrum, who owns which direction), (k,) or (expert, k) each.
    roads: how its factorisations were computed.
    """

    delta: Tensor
    facts: Mapping[str, Fact] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    roads: tuple[str, ...] = ()


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
class Choice:
    """The help of a setting that is one of a few words."""

    options: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Setting:
    """One setting of a method, as a recipe writes it."""

    name: str
    default: Any
    knob: Knob | Switch | Choice

    @property
    def start(self) -> Any:
        """Where the page puts it: the knob's own start, else the recipe's default."""
        start = self.knob.start if isinstance(self.knob, Knob) else None
        return self.default if start is None else start

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
        if isinstance(self.knob, Choice):
            if value not in self.knob.options:
                found = f"'{self.name}' of {method} must be {' or '.join(self.knob.options)}, not {brief(value)}."
                raise MergeError(f"{found} {did_you_mean(value, self.knob.options)}")
            return value
        low, high = self.knob.low, self.knob.high
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:  # NaN too
            raise MergeError(
                f"'{self.name}' of {method} must be a number from {low:g} to {high:g}, not {brief(value)}."
            )
        return float(value)


@dataclass(frozen=True)
class MergeMethod:
    """An entry of METHODS: call it with a Layer and settings, get a Merged. Of STEPS: with a Layer and a Merged."""

    name: str  # as a recipe writes it
    title: str  # as a person reads it
    paper: str  # arXiv number, or ""
    fewest: int  # experts that it needs
    settings: tuple[Setting, ...]
    function: Callable[..., Merged]
    entrywise: bool = False  # where a layer is not decomposed, each entry is merged on its own, without a fact
    most: int | None = None  # experts that it takes
    base_apart: bool = False  # a recipe that lists the base among its models does not make an expert of it

    @property
    def summary(self) -> str:
        """One sentence: what it does."""
        return self.doc.split("\n", 1)[0]

    @property
    def doc(self) -> str:
        """The function's docstring: summary, equations, where it differs from the authors' code."""
        return getdoc(self.function) or ""

    def starting(self) -> dict[str, Any]:
        """All settings as the page first shows them."""
        return {setting.name: setting.start for setting in self.settings}

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

    def __call__(self, layer: Layer, *merged: Merged, **settings: Any) -> Merged:
        given = {_argument(name): value for name, value in self.checked(settings).items()}
        return self.function(layer, *merged, **given)


METHODS: dict[str, MergeMethod] = {}
STEPS: dict[str, MergeMethod] = {}


def merge_method(
    title: str,
    *,
    paper: str = "",
    fewest: int = 1,
    most: int | None = None,
    base_apart: bool = False,
    entrywise: bool = False,
) -> Callable:
    """Enter a function in METHODS, under its own name; its keyword arguments are its settings.

    entrywise: where a layer is not decomposed, an entry of the answer depends on the same entries of the deltas and the
    base alone, and there are no facts. Large tables are then merged in parts.
    """

    def enter(function: Callable[..., Merged]) -> MergeMethod:
        traits = {"most": most, "base_apart": base_apart, "entrywise": entrywise}
        settings = _settings(function)
        return _entered(METHODS, MergeMethod(function.__name__, title, paper, fewest, settings, function, **traits))

    return enter


def merge_step(title: str, *, paper: str) -> Callable:
    """Enter a function of (layer, what a method made of it) in STEPS: what can be done after any merge."""

    def enter(function: Callable[..., Merged]) -> MergeMethod:
        return _entered(STEPS, MergeMethod(function.__name__, title, paper, 1, _settings(function), function))

    return enter


def _settings(function: Callable) -> tuple[Setting, ...]:
    hints = get_type_hints(function, include_extras=True)
    keywords = [p for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    return tuple(Setting(p.name.rstrip("_"), p.default, _knob(hints[p.name], p.name)) for p in keywords)


def _entered(table: dict[str, MergeMethod], method: MergeMethod) -> MergeMethod:
    if table.setdefault(method.name, method) is not method:
        raise TypeError(f"there are two merge methods called '{method.name}'")
    return method


def method_named(name: str) -> MergeMethod:
    """The method of that name; MergeError with the nearest name if there is none."""
    if name not in METHODS:
        raise MergeError(f"There is no merge method '{name}'. {did_you_mean(name, METHODS)}")
    return METHODS[name]


def step_named(name: str) -> MergeMethod:
    """The step of that name; MergeError with the nearest name if there is none."""
    if name not in STEPS:
        raise MergeError(f"There is no step '{name}' to take after a merge. {did_you_mean(name, STEPS)}")
    return STEPS[name]


def _moves(delta: Delta) -> bool:
    return bool(delta.left.any() and delta.right.any()) if isinstance(delta, LowRank) else bool(delta.any())


def _knob(hint: Any, name: str) -> Knob | Switch | Choice:
    notes = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, (Knob, Switch, Choice))]
    if len(notes) != 1:
        raise TypeError(f"setting '{name}' needs one Knob, Switch or Choice in its annotation")
    return notes[0]


def _argument(name: str) -> str:
    return f"{name}_" if iskeyword(name) else name  # `lambda` is a recipe's word, and one that Python keeps for itself
