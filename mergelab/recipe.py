"""What was asked for: a base, its experts, a method and its settings; mergekit's YAML both ways.

This room knows the shape of a recipe and nothing of what it leads to: whether a method or a file exists is found out
by those who open them. Format: https://github.com/arcee-ai/mergekit (the keys below; our own live under `mergelab:`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mergelab.errors import MergeError, did_you_mean

DTYPES = ("float32", "float16", "bfloat16")
_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "mergelab")
_EXTRAS = ("decompose_embeddings", "align", "seed", "then")
_ALIGN = ("none", "weights", "activations")


@dataclass(frozen=True)
class Expert:
    """A model fine-tuned from the base: a folder, `FOLDER+ADAPTER`, an adapter folder, a bundled name or a Hub id."""

    source: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The last part of the source, short enough for an axis."""
        return re.split(r"[/\\+]", self.source.rstrip("/\\"))[-1]


@dataclass(frozen=True)
class Recipe:
    """All that was asked. The page, the command line, the report and the model card share this one object."""

    base: str
    experts: tuple[Expert, ...]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dtype: str | None = None  # of the written weights; None keeps the base's
    decompose_embeddings: bool = False
    align: str = "none"  # how experts are brought into the base's coordinates: none | weights | activations
    seed: int = 0  # of what a method draws at random
    then: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)  # steps after it -> their settings

    @property
    def names(self) -> tuple[str, ...]:
        """One name per expert, no two the same: short, or its whole source, or numbered where even those are equal."""
        short, whole = [e.name for e in self.experts], [e.source for e in self.experts]
        names = [e.name if short.count(e.name) == 1 else e.source for e in self.experts]
        numbers = [whole[: i + 1].count(source) for i, source in enumerate(whole)]
        return tuple(name if number == 1 else f"{name} ({number})" for name, number in zip(names, numbers))

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this recipe; equal recipes have equal ones."""
        plain = json.loads(json.dumps(asdict(self), default=str), parse_int=float)  # 40 is 40.0
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """The recipe in a YAML file; MergeError names the line or the key that is wrong."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MergeError(f"Cannot read the recipe '{path}': {_reason(error)}.") from None
        return cls.from_yaml(text, str(path))

    @classmethod
    def from_yaml(cls, text: str, where: str = "the recipe") -> "Recipe":
        """The recipe in a YAML text; `where` is what errors call it."""
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}," if mark else ""
            problem = " ".join(str(getattr(error, "problem", None) or error).split())
            raise MergeError(f"{where}{line} is not valid YAML: {problem}.") from None
        return cls.from_dict(data, where)

    @classmethod
    def from_dict(cls, data: Any, where: str = "the recipe") -> "Recipe":
        """The recipe in mergekit's keys."""
        _check_keys(data, _KEYS, where)
        for key in ("merge_method", "base_model", "models"):
            if not data.get(key):
                raise MergeError(f"{where} has no '{key}'. A recipe needs merge_method, base_model and models.")
        models = data["models"]
        if not isinstance(models, list):
            raise MergeError(f"{where}: 'models' must be a list of '- model: …' entries, not {_kind(models)}.")
        extras = _mapping(data.get("mergelab"), f"{where}, mergelab")
        _check_keys(extras, _EXTRAS, f"{where}, mergelab")
        return cls(
            base=_text(data["base_model"], "base_model", where),
            experts=tuple(_expert(entry, f"{where}, model {i + 1}") for i, entry in enumerate(models)),
            method=_text(data["merge_method"], "merge_method", where),
            settings=_mapping(data.get("parameters"), f"{where}, parameters"),
            dtype=_dtype(data.get("dtype"), where),
            decompose_embeddings=_flag(extras.get("decompose_embeddings", False), where),
            align=_alignment(extras.get("align", "none"), where),
            seed=_seed(extras.get("seed", 0), where),
            then=_steps(extras.get("then"), f"{where}, mergelab, then"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same recipe in mergekit's keys; what is at its default is left out."""
        data: dict[str, Any] = {
            "merge_method": self.method,
            "base_model": self.base,
            "models": [{"model": e.source, "parameters": {"weight": e.weight}} for e in self.experts],
        }
        if self.settings:
            data["parameters"] = dict(self.settings)
        if self.dtype:
            data["dtype"] = self.dtype
        extras: dict[str, Any] = {"decompose_embeddings": True} if self.decompose_embeddings else {}
        extras |= {"align": self.align} if self.align != "none" else {}
        extras |= {"seed": self.seed} if self.seed else {}
        if self.then:
            extras["then"] = {name: dict(settings) for name, settings in self.then.items()}
        return data | ({"mergelab": extras} if extras else {})

    def to_yaml(self) -> str:
        """The same recipe as a YAML file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def _expert(entry: Any, where: str) -> Expert:
    if isinstance(entry, str):
        entry = {"model": entry}
    _check_keys(entry, ("model", "parameters"), where)
    if not entry.get("model"):
        raise MergeError(f"{where} has no 'model'.")
    parameters = _mapping(entry.get("parameters"), f"{where}, parameters")
    if others := [key for key in parameters if key != "weight"]:
        raise MergeError(
            f"{where} has its own '{others[0]}', but only 'weight' can differ from expert to expert. "
            "Settings of the method stand under the recipe's own 'parameters'."
        )
    weight = parameters.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < 1e30:
        raise MergeError(f"{where}: weight must be a number, not {weight!r}.")
    return Expert(_text(entry["model"], "model", where), float(weight))


def _mapping(data: Any, where: str) -> dict[str, Any]:
    if data is not None and not isinstance(data, dict):
        raise MergeError(f"{where} must be a mapping of names to values, not {_kind(data)}.")
    return {str(key): value for key, value in (data or {}).items()}


def _check_keys(data: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(data, dict):
        raise MergeError(f"{where} must be a mapping with {', '.join(known)}, not {_kind(data)}.")
    for key in data:
        if key not in known:
            raise MergeError(f"{where} has an unknown key '{key}'. {did_you_mean(key, known)}")


def _dtype(value: Any, where: str) -> str | None:
    if value is not None and value not in DTYPES:
        raise MergeError(f"{where}: unknown dtype {value!r}. {did_you_mean(value, DTYPES)}")
    return value


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise MergeError(f"{where}: '{key}' must be the name of something, not {value!r}.")
    return value.strip()


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise MergeError(f"{where}: 'decompose_embeddings' must be true or false, not {value!r}.")
    return value


def _alignment(value: Any, where: str) -> str:
    if value not in _ALIGN:
        raise MergeError(f"{where}: unknown 'align' {value!r}. {did_you_mean(value, _ALIGN)}")
    return value


def _seed(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise MergeError(f"{where}: 'seed' must be a whole number from 0 up, not {value!r}.")
    return value


def _steps(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """A step's name, or a mapping from names to settings."""
    steps = {value: None} if isinstance(value, str) else _mapping(value, where)
    return {name: _mapping(settings, f"{where}, {name}") for name, settings in steps.items()}


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), repr(value))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is not UTF-8 text"
