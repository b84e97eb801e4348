"""What was asked for: a base, its experts, a method and its settings; mergekit's YAML both ways.

This room knows the shape of a recipe and nothing of what it leads to: whether a method or a file exists is found out
by those who open them. What mergekit's format may say is in mergekit_yaml.py; our own keys live under `mergelab:`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mergelab.errors import MergeError, brief
from mergelab.recipes import mergekit_yaml as kit
from mergelab.recipes.mergekit_yaml import DTYPES as DTYPES  # a recipe's words, for those who offer them
from mergelab.recipes.varying import NO_YAML

# Our keys under `mergelab:`, each a field of Recipe, and what its value must be. All but base_model have a default.
_EXTRAS: dict[str, Callable[[Any, str], Any]] = {
    "decompose_embeddings": kit.flag,
    "vocabulary": kit.one_of("refuse", "base", "common"),
    "missing": kit.one_of("refuse", "base"),
    "align": kit.one_of("none", "weights", "activations", "best"),
    "seed": kit.seed,
    "then": kit.steps,
    "layers": kit.count,
    "shard_size": kit.size,
}


@dataclass(frozen=True)
class Expert:
    """A model fine-tuned from the base: a folder, `FOLDER+ADAPTER`, an adapter folder, a bundled name or a Hub id.

    weight and settings (what this expert has of its own, a density say) may vary from tensor to tensor: varying.py.
    """

    source: str
    weight: Any = field(default=1.0, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

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
    dtype: str | None = None  # mergekit computes in it, and so writes it; None keeps the base's
    decompose_embeddings: bool = False
    align: str = "none"  # how experts are brought into the base's coordinates: none | weights | activations | best
    seed: int = 0  # of what a method draws at random
    then: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)  # steps after it -> their settings
    out_dtype: str | None = None  # of the written weights, where it is not `dtype`
    tokenizer_source: str | None = None  # whose tokenizer goes with the merge; None and 'base': the base's
    chat_template: str | None = None  # Jinja text, or 'auto': the one that most of the models have
    vocabulary: str = "refuse"  # experts with another vocabulary: refuse | base | common
    missing: str = "refuse"  # experts that lack a tensor of the base: refuse | base
    shard_size: int | None = None  # most bytes of a written file; None keeps the base's files
    layers: int | None = None  # that a slice asked for, to be compared with what the base has

    @cached_property
    def names(self) -> tuple[str, ...]:
        """One name per expert, no two the same: short, or its whole source, or numbered where even those are equal."""
        short, whole = [e.name for e in self.experts], [e.source for e in self.experts]
        names = [e.name if short.count(e.name) == 1 else e.source for e in self.experts]
        numbers = [whole[: i + 1].count(source) for i, source in enumerate(whole)]
        return tuple(name if number == 1 else f"{name} ({number})" for name, number in zip(names, numbers))

    @property
    def written_dtype(self) -> str | None:
        """The number format of the written weights; None is the base's own."""
        return self.out_dtype or self.dtype

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
            data = yaml.load(text, Loader=_Once)
        except NO_YAML as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}," if mark else ""
            problem = " ".join(str(getattr(error, "problem", None) or error).split())
            raise MergeError(f"{where}{line} is not valid YAML: {problem}.") from None
        return cls.from_dict(data, where)

    @classmethod
    def from_dict(cls, data: Any, where: str = "the recipe") -> "Recipe":
        """The recipe in mergekit's keys."""
        kit.check_keys(data, kit.KEYS, where)
        if not data.get("merge_method") or bool(data.get("models")) == bool(data.get("slices")):
            raise MergeError(f"{where} {_lacks(data)}. A recipe needs merge_method, base_model and models.")
        extras = kit.mapping(data.get("mergelab"), f"{where}, mergelab")
        kit.check_keys(extras, (*_EXTRAS, "base_model"), f"{where}, mergelab")
        body = kit.body(data, where)
        own = {key: check(extras[key], f"{where}: '{key}'") for key, check in _EXTRAS.items() if key in extras}
        return cls(
            base=body.base,
            experts=tuple(Expert(*model) for model in body.models),
            method=data["merge_method"].strip(),
            settings=body.settings,
            dtype=kit.dtype(data.get("dtype"), where),
            out_dtype=kit.dtype(data.get("out_dtype"), where),
            tokenizer_source=_tokenizer(data.get("tokenizer_source"), where),
            chat_template=_template(data.get("chat_template"), where),
            **({"layers": body.layers} | own if body.layers else own),
        )

    @property
    def runs_in_mergekit(self) -> bool:
        """Whether mergekit, given this recipe, would write the same weights (but for what is drawn at random)."""
        known = self.method in (*kit.COUNT_BASE, *kit.LEAVE_BASE)
        sources = [expert.source for expert in self.experts]
        changing = self._extras().keys() - {"shard_size", "layers"}  # which change no number
        weighed = self.method in kit.WITHOUT_WEIGHTS and any(expert.weight != 1 for expert in self.experts)
        return known and not changing and not weighed and len({*sources}) == len(sources)

    def _extras(self) -> dict[str, Any]:
        """What stands under `mergelab:`: our keys that are not at their defaults."""
        defaults = {f.name: {} if f.default is MISSING else f.default for f in fields(self)}
        found = {key: getattr(self, key) for key in _EXTRAS if getattr(self, key) != defaults[key]}
        return found | ({"then": {name: dict(given) for name, given in self.then.items()}} if self.then else {})

    def to_dict(self) -> dict[str, Any]:
        """The same recipe in mergekit's keys; what is at its default is left out."""
        counted = self.base in [expert.source for expert in self.experts]
        free = self.method in kit.FREE_BASE and self.settings.get(kit.FROM_ZERO) is True
        named = not free and (counted or self.method not in kit.COUNT_BASE)
        data: dict[str, Any] = {"merge_method": self.method} | ({"base_model": self.base} if named else {})
        data["models"] = [{"model": e.source, "parameters": {"weight": e.weight, **e.settings}} for e in self.experts]
        if settings := {key: value for key, value in self.settings.items() if not (free and key == kit.FROM_ZERO)}:
            data["parameters"] = settings
        keys = ("dtype", "out_dtype", "tokenizer_source", "chat_template")
        data |= {key: getattr(self, key) for key in keys if getattr(self, key)}
        extras = self._extras()
        if not named:  # under our key: mergekit would count it as one of the models, or measure from it
            extras["base_model"] = self.base
        return data | ({"mergelab": extras} if extras else {})

    def to_yaml(self) -> str:
        """The same recipe as a YAML file."""
        return yaml.dump(self.to_dict(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


class _Once(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: YAML's own reader would take the last one and say nothing."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {brief(key.value)} stands twice; keep one of them"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return node


class _Plain(yaml.SafeDumper):
    """Writes values that occur twice out twice: anchors are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lacks(data: Mapping[str, Any]) -> str:
    if data.get("merge_method") and data.get("models"):
        return "has both 'models' and 'slices'"
    return f"has no '{'models' if data.get('merge_method') else 'merge_method'}'"


def _tokenizer(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if kit.text(value, f"{where}: 'tokenizer_source'") == "union":
        raise MergeError(
            f"{where}: mergelab does not build the union of vocabularies. Use tokenizer_source 'base' or the name of a "
            "model, and 'vocabulary' under 'mergelab' for experts whose vocabulary differs."
        )
    return value.strip()


def _template(value: Any, where: str) -> str | None:
    if value is None:
        return None
    words = kit.text(value, f"{where}: 'chat_template'")
    if words != "auto" and "{" not in words:
        raise MergeError(f"{where}: 'chat_template' must be 'auto' or a template's own Jinja text, not {brief(words)}.")
    return words


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it is not UTF-8 text"
