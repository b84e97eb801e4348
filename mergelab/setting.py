"""The settings of a merge method: what a recipe may say of each, and the words and bounds that the page draws.

This room knows no method and no tensor.
"""

from dataclasses import dataclass
from typing import Any

from mergelab.errors import MergeError, brief, did_you_mean
from mergelab.recipes.varying import mapped, well_formed


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
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise MergeError(f"'{self.name}' of {method} must be true or false, not {brief(value)}.")
            return bool(value)
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
