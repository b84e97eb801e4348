"""What one visitor may ask of a page that many share, read from the environment; no bounds for a person alone.

In public mode a model is a bundled one or one of the Hub: no path of this machine is ever looked at. Only the page
reads any of this.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mergelab.assets import bundled
from mergelab.errors import MergeError, brief, did_you_mean
from mergelab.recipes.recipe import Recipe
from mergelab.words import counted

_PREFIX = "MERGELAB_"
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_LONGEST = 200  # characters of a name with its revision
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?", re.ASCII)


def _bound(says: str, public: float, alone: float | None = None, kind: Callable = float) -> Any:
    """A field of Limits. public, alone: its default in public mode and outside of it (None: no bound)."""
    return field(default=alone, metadata={"says": says, "public": public, "kind": kind})


@dataclass(frozen=True)
class Limits:
    """The bounds; None is none. `Limits()` is what a person alone has."""

    public: bool = field(default=False, metadata={"says": "public mode: no local paths, sizes checked before download"})
    max_parameters: int | None = _bound("parameters of one model", 2_000_000_000, kind=int)
    max_disk_gb: float | None = _bound("gigabytes that one recipe, all kept merges, or all downloads take", 20)
    max_experts: int | None = _bound("experts in one recipe", 8, kind=int)
    max_tokens: int | None = _bound("tokens of one answer", 512, kind=int)
    max_minutes: float | None = _bound("minutes of one job, from its turn on; looked at between two tensors", 15)
    max_models: int = _bound("models kept loaded for prompts and scores", 4, 4, int)
    max_kept_mb: int = _bound("megabytes of analyses that are kept", 256, 256, int)
    max_waiting: int = _bound("jobs that may wait in line", 24, 24, int)

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> "Limits":
        """The limits in the environment; MergeError names the variable that says something else than a number."""
        given = os.environ if environment is None else environment
        known = {variable(f.name): f for f in fields(cls)}
        for name in given:
            if name.startswith(f"{_PREFIX}MAX_") and name not in known:
                raise MergeError(f"There is no limit {name}. {did_you_mean(name, known)}")
        public = _flag(given, "SPACE_ID" in given)
        defaults = {f.name: f.metadata["public"] if public else f.default for f in fields(cls) if f.name != "public"}
        bounds = {f.name: f for f in fields(cls) if f.name != "public"}
        found = {name: _number(given, bounds[name], default) for name, default in defaults.items()}
        return cls(public=public, **found)

    def check(self, recipe: Recipe) -> None:
        """MergeError if a recipe names what it may not, or too much of it."""
        for source in sources(recipe):
            self.check_source(source)
        count = len(recipe.experts)
        if self.max_experts is not None and count > self.max_experts:
            raise MergeError(f"The recipe has {counted(count, 'expert')}; this page merges at most {self.max_experts}.")
        if self.public and recipe.chat_template not in (None, "auto"):
            raise MergeError("On this page a chat template is that of one of the models: 'auto', or none given.")

    def check_source(self, source: str) -> None:
        """MergeError if a source is a path of this machine, in public mode."""
        if self.public and not all(map(_is_public, source.split("+"))):
            raise MergeError(
                "On this page a model is a bundled one, or one of the Hugging Face Hub, as OWNER/NAME. "
                f"{brief(source)} is neither: paths work where you run mergelab yourself."
            )

    def check_tokens(self, tokens: int) -> None:
        """MergeError if an answer may not be so long."""
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise MergeError(f"An answer of {tokens} tokens was asked for; this page gives at most {self.max_tokens}.")

    @property
    def disk(self) -> float | None:
        """The bound on disk, in bytes."""
        return None if self.max_disk_gb is None else self.max_disk_gb * 1e9


def sources(recipe: Recipe) -> tuple[str, ...]:
    """Every source that a recipe names: base, experts, whose tokenizer."""
    tokenizer = (recipe.tokenizer_source,) if recipe.tokenizer_source not in (None, "base") else ()
    return (recipe.base, *(expert.source for expert in recipe.experts), *tokenizer)


def variable(name: str) -> str:
    """The environment variable of a limit."""
    return _PREFIX + name.upper()


def _is_public(part: str) -> bool:
    """Whether a name can only be a bundled model or one of the Hub: a relative path looks like the latter."""
    name = part.strip()
    if name in bundled():
        return True
    return len(name) <= _LONGEST and bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _flag(given: Mapping[str, str], default: bool) -> bool:
    word = given.get(variable("public"), "").strip().lower()
    if word not in ("", *_ON, *_OFF):
        raise MergeError(f"{variable('public')} must be 1 or 0, not {brief(word)}.")
    return word in _ON if word else default


def _number(given: Mapping[str, str], bound: Any, default: float | None) -> float | None:
    text = given.get(variable(bound.name), "").strip().lower()
    if not text:
        return default
    if text == "none" and bound.default is None:
        return None
    kind = bound.metadata["kind"]
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        words = "a whole number above 0" if kind is int else "a number above 0"
        none = ", or 'none' for no bound" if bound.default is None else ""
        raise MergeError(f"{variable(bound.name)} must be {words}{none}, not {brief(text)}.")
    return value
