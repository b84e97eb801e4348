"""What a merge method is: a function of one Layer and a few bounded knobs, and the table of all of them.

`@merge_method` reads a function's signature and enters it in METHODS; the page, the command line and the contract tests
are drawn from that table. This room knows no method by name and no file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from inspect import Parameter, getdoc, signature
from keyword import iskeyword
from math import prod
from typing import Any, get_type_hints

import torch
from torch import Tensor

from mergelab.errors import MergeError, did_you_mean
from mergelab.maths import noise, spectral
from mergelab.maths.spectral import Delta, Factors, LowRank, Wanted
from mergelab.report import Fact
from mergelab.setting import Choice, Knob, Setting, Switch

# (the experts' indices, what is wanted) -> the factors of their deltas
Factorise = Callable[[Sequence[int], Wanted | None], Sequence[Factors]]


@dataclass(frozen=True)
class Layer:
    """One parameter of the merge: the unit of memory, of work and of reporting.

    base: float32 (float64 where the base is), any shape. deltas: one per expert, expert minus base, in that dtype;
    dense in the base's shape, or LowRank. weights: (expert,). decompose: the tensor is a matrix whose singular
    directions mean something (not an embedding). factorise: where factors are kept, and where the layer is some rows of
    a tall matrix, of which all are factorised; else they are computed. experts: their names; with the seed and the name
    that the layer is drawn as ('': its own), they decide what is random. seen: what the method's survey of the whole
    tensor found, where it has one; the layer may then be some of its rows.
    """

    name: str
    base: Tensor
    deltas: tuple[Delta, ...]
    weights: Tensor
    decompose: bool = False
    factorise: Factorise | None = None
    experts: tuple[str, ...] = ()
    seed: int = 0
    seen: Any = None
    drawn_as: str = ""

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
        return tuple(self._factorise(range(len(self.deltas)), wanted))

    @cached_property
    def _factorise(self) -> "Remembered":
        def computed(experts: Sequence[int], wanted: Wanted | None) -> Sequence[Factors]:
            return spectral.factors_of_each([self.deltas[expert] for expert in experts], wanted)

        return Remembered(self.factorise or computed)

    def leading(self, factors: Sequence[Factors], ranks: Sequence[int], gains: Sequence[float]) -> list[LowRank]:
        """Each delta's so many strongest directions, times a gain. What was projected for other ranks is taken over."""
        return [self._leading(i, *of_it) for i, of_it in enumerate(zip(factors, ranks, gains))]

    def _leading(self, expert: int, factors: Factors, rank: int, gain: float) -> LowRank:
        delta, (road, known) = self.deltas[expert], self._coordinates.get(expert, ("", None))
        known = known if road == factors.road else None  # other roads find the same directions with other signs
        found = spectral.coordinates(delta, factors, rank, known)
        if known is None or len(known) < rank:
            self._coordinates[expert] = factors.road, found
        return spectral.leading(delta, factors, rank, gain, found)

    @cached_property
    def _coordinates(self) -> dict[int, tuple[str, Tensor]]:
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
        return each(value, len(self.deltas))

    def weighted(self, stack: Tensor) -> Tensor:
        """A stack (expert, *shape) times each expert's weight; the stack itself where all weights are 1."""
        if self._unweighted:
            return stack
        return stack * self.weights.to(stack.dtype).view(-1, *[1] * (stack.dim() - 1))

    @cached_property
    def _unweighted(self) -> bool:
        return bool((self.weights == 1).all())

    def noise(self, expert: int, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) for one expert, float32; those of two experts or two layers are independent.

        They depend on the seed, on what the layer is drawn as, on the expert's name, and on nothing else.
        """
        name = self.experts[expert] if self.experts else expert
        drawn = noise.uniform(prod(shape), noise.key_of(self.seed, self.drawn_as or self.name, name), self.base.device)
        return drawn.view(shape)


@dataclass(frozen=True)
class Merged:
    """A method's answer for one layer.

    delta: what to add to the base, the layer's shape. facts: numbers worth plotting, one per expert or one for the
    layer. curves: sequences worth plotting (a joint spectrum, who owns which direction), (k,) or (expert, k) each.
    roads: how its factorisations were computed. counts: facts that are shares, as (number, of how many), (2,) or
    (2, expert): those of the parts of a tensor add up.
    """

    delta: Tensor
    facts: Mapping[str, Fact] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    roads: tuple[str, ...] = ()
    counts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    """A tensor that is merged in parts, for the survey of a method: its entries, its experts, and a walk over parts.

    Each call of `walk` reads the tensor again, a Layer of some rows at a time.
    """

    size: int
    experts: int
    walk: Callable[[], Iterable[Layer]]


class Remembered:
    """A Factorise that is asked again only for deltas whose vectors it has not given yet."""

    def __init__(self, factorise: Factorise):
        self.factorise = factorise
        self.known: dict[int, Factors] = {}

    def __call__(self, experts: Sequence[int], wanted: Wanted | None) -> Sequence[Factors]:
        known = self.known
        lacking = [expert for expert in experts if expert not in known or not known[expert].suffice(wanted)]
        if lacking:
            known.update(zip(lacking, self.factorise(lacking, wanted)))
        return [known[expert] for expert in experts]


def each(value: float | tuple[float, ...], experts: int) -> tuple[float, ...]:
    """A setting as one number per expert."""
    return value if isinstance(value, tuple) else (value,) * experts


def shares(counts: Mapping[str, Tensor]) -> dict[str, Fact]:
    """The facts that counts are: number / of how many, 0 where there are none."""
    found = {name: count[0] / count[1].clamp(min=1) for name, count in counts.items()}
    return {name: tuple(share.tolist()) if share.dim() else float(share) for name, share in found.items()}


@dataclass(frozen=True)
class MergeMethod:
    """An entry of METHODS: call it with a Layer and settings, get a Merged. Of STEPS: with a Layer and a Merged."""

    name: str  # as a recipe writes it
    title: str  # as a person reads it
    paper: str  # arXiv number, or ""
    fewest: int  # experts that it needs
    settings: tuple[Setting, ...]
    function: Callable[..., Merged]
    entrywise: str = "never"  # which layers it merges entry by entry: never, tables (what is not decomposed), always
    survey: Callable[..., Any] | None = None  # what it must know of the whole tensor before it can do so
    rowwise: bool = False  # a matrix to decompose is merged row by row, once its deltas' right factors are known
    refusal: Callable[..., str] | None = None  # why it cannot merge with such weights; "" if it can
    most: int | None = None  # experts that it takes
    memory: float = 4  # matrices of float32 that it holds at most, for the base and for each delta, beside these
    idle: tuple[str, ...] = ("int8_mask",)  # settings of mergekit's recipes that change no number here, nor there

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
            if key not in known and key not in self.idle:
                raise MergeError(f"{self.title} has no setting '{key}'. {did_you_mean(key, known)}".rstrip())
        return {name: s.checked(given.get(name, s.default), self.title) for name, s in known.items()}

    def checked_own(self, given: Mapping[str, Any], expert: str) -> dict[str, Any]:
        """The settings that an expert has of its own; MergeError for one that cannot differ from expert to expert."""
        known = {setting.name: setting for setting in self.settings if setting.each}
        given = {key: value for key, value in given.items() if key not in self.idle}
        for key in given:
            if key not in known:
                free = ", ".join(f"'{name}'" for name in ("weight", *known))
                raise MergeError(
                    f"Expert '{expert}' has its own '{key}', but with {self.title} only {free} can differ from expert "
                    "to expert. Other settings of the method stand under the recipe's own 'parameters'."
                )
        return {name: known[name].checked(value, self.title) for name, value in given.items()}

    def goes_by_entries(self, decompose: bool) -> bool:
        """Whether it merges each entry of a layer on its own, so that large tensors can be merged in parts."""
        return self.entrywise == "always" or (self.entrywise == "tables" and not decompose)

    def surveyed(self, whole: Whole, **settings: Any) -> Any:
        """What is to be `seen` by every part of a tensor; None if nothing is."""
        return self.survey(whole, **self._arguments(settings)) if self.survey else None

    def check_weights(self, weights: Sequence[float], settings: Mapping[str, Any]) -> None:
        """MergeError if it cannot merge experts of such weights, whatever they are."""
        if self.refusal and (why := self.refusal(weights, **self._arguments(settings))):
            raise MergeError(why)

    def __call__(self, layer: Layer, *merged: Merged, **settings: Any) -> Merged:
        self.check_weights(layer.weights.tolist() if self.refusal else (), settings)
        if self.survey and layer.seen is None and self.goes_by_entries(layer.decompose):
            whole = Whole(layer.base.numel(), len(layer.deltas), partial(list, [layer]))
            layer = replace(layer, seen=self.surveyed(whole, **settings))
        made = self.function(layer, *merged, **self._arguments(settings))
        return replace(made, facts={**made.facts, **shares(made.counts)}) if made.counts else made

    def _arguments(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {_argument(name): value for name, value in self.checked(settings).items()}


METHODS: dict[str, MergeMethod] = {}
STEPS: dict[str, MergeMethod] = {}


def merge_method(
    title: str,
    *,
    paper: str = "",
    fewest: int = 1,
    idle: tuple[str, ...] = (),
    **traits: Any,
) -> Callable:
    """Enter a function in METHODS, under its own name; its keyword arguments are its settings.

    idle: what mergekit's recipes may set without any effect, beside `int8_mask`, which says how mergekit holds its
    masks. traits: other fields of MergeMethod by their names, of which these say more than their line there:

    entrywise: "tables": where a layer is not decomposed, an entry of the answer depends on the same entries of the
    deltas and the base alone, and on `layer.seen`; facts are counts. "always": so of every layer. Such layers are
    merged in parts. survey: (Whole, the settings) -> what is then `seen`. rowwise: where `layer.factors` are right,
    a row of the answer depends on these and on the same row of the deltas and the base alone, and all facts are of the
    factors: so tall matrices are merged in parts, too. refusal: (the weights of the experts, the settings) -> why they
    cannot be merged, "" if they can.
    """

    def enter(function: Callable[..., Merged]) -> MergeMethod:
        what = function.__name__, title, paper, fewest, _settings(function), function
        return _entered(METHODS, MergeMethod(*what, idle=("int8_mask", *idle), **traits))

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
