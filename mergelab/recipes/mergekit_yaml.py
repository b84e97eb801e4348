"""What a recipe in mergekit's format may say, checked key by key, and brought into one plain shape.

A slice becomes models, a setting of a narrower level goes before the wider one's, and the base among the models is kept
where it counts and dropped where mergekit gives it no weight. This room opens no file and knows no method's knobs.
Format: https://github.com/arcee-ai/mergekit; behaviour: that of mergekit 0.1.5.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os.path import normpath
from typing import Any

from mergelab.errors import MergeError, brief, did_you_mean
from mergelab.recipes.varying import mapped, well_formed, with_fallback

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
DTYPES = ("float32", "float16", "bfloat16")
KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype")
KEYS += ("tokenizer_source", "chat_template", "mergelab")
_NOT_OURS = {
    "modules": "name the models under 'models'",
    "tokenizer": "use 'tokenizer_source' with 'base' or the name of a model",
}

# mergekit's methods whose inputs include the base if it is listed; with a base that is not listed, it adds it.
COUNT_BASE = ("linear", "karcher")
# Those that take differences from the base: it gets no weight, listed or not.
LEAVE_BASE = (
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear",
    "model_stock", "multislerp", "nearswap", "nuslerp", "ram", "ramplus_tl", "sce", "slerp", "task_arithmetic", "ties",
)  # fmt: skip
# Of those, the ones that take the models' weights themselves where no base is named.
FREE_BASE = ("multislerp", "nuslerp")
# Those without a parameter 'weight', which mergekit then does not look at.
WITHOUT_WEIGHTS = ("karcher", "model_stock", "nearswap", "sce", "slerp")
# The one that counts the base by a setting: an expert that is the base would be counted twice.
COUNTS_BASE_ITSELF = ("karcher",)
FROM_ZERO, COUNTED = "from_zero", "count_base"  # what these are called here


@dataclass(frozen=True)
class Body:
    """A recipe's models in the plain shape. models: (source, weight, settings of its own) each."""

    base: str
    models: tuple[tuple[str, Any, dict[str, Any]], ...]
    settings: dict[str, Any]
    layers: int | None  # that a slice spans


def body(data: Mapping[str, Any], where: str) -> Body:
    """Base, models and settings of a recipe whose keys have been checked."""
    method = text(data.get("merge_method"), f"{where}: 'merge_method'")
    wide = settings(data.get("parameters"), f"{where}, parameters")
    if data.get("slices"):
        entries, narrow, layers = _slice(data, where)
        wide = {key: with_fallback(narrow.get(key, wide.get(key)), wide.get(key)) for key in {**narrow, **wide}}
    else:
        entries, layers = data["models"], None
    if not isinstance(entries, list):
        raise MergeError(f"{where}: 'models' must be a list of '- model: …' entries, not {kind(entries)}.")
    named = [_model(entry, f"{where}, model {i + 1}") for i, entry in enumerate(entries)]
    free = method in FREE_BASE and not data.get("base_model") and wide.setdefault(FROM_ZERO, True) != 0
    base = _base(data, free or method in COUNT_BASE, [source for source, _ in named], where)
    if method in LEAVE_BASE and not free:
        named = [pair for pair in named if normpath(pair[0]) != normpath(base)]
    listed = any(normpath(source) == normpath(base) for source, _ in named)
    if data.get("slices") and not listed:  # to whose sources mergekit adds no base
        wide = ({COUNTED: False} if method in COUNTS_BASE_ITSELF else {}) | wide
    elif method in COUNT_BASE and "weight" in wide and data.get("base_model") and not listed:
        named.append((base, {}))
    weight = wide.pop("weight", None)
    models = tuple((source, _weight(own, weight, where), own) for source, own in named)
    if not models:
        raise MergeError(f"{where} has no models but the base. Name the models that were fine-tuned from it.")
    return Body(base, models, wide, layers)


def _base(data: Mapping[str, Any], free: bool, sources: list[str], where: str) -> str:
    """The base that a recipe names, under one key or the other. free: it need not."""
    own = data.get("mergelab") or {}
    both = data.get("base_model"), own.get("base_model") if isinstance(own, dict) else None
    given = [text(base, f"{where}: 'base_model'") for base in both if base]
    if len({*map(normpath, given)}) > 1:
        found = f"has the base_model {brief(given[0])}, and under 'mergelab' {brief(given[1])}"
        raise MergeError(f"{where} {found}. Keep the one that the experts were fine-tuned from.")
    if not given and not free:
        raise MergeError(f"{where} has no 'base_model'. A recipe needs merge_method, base_model and models.")
    # of whole weights it is the same, whichever model is taken for the base
    return given[0] if given else sources[0].partition("+")[0].strip()


def _weight(own: dict[str, Any], wide: Any, where: str) -> Any:
    weight = own.pop("weight", None)
    weight = (1.0 if wide is None else wide) if weight is None else weight
    checked = mapped(weight, lambda value: number(value, f"{where}: weight"))
    return checked if wide is None else with_fallback(checked, mapped(wide, lambda v: number(v, f"{where}: weight")))


def _model(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        entry = {"model": entry}
    check_keys(entry, ("model", "parameters"), where)
    if not entry.get("model"):
        raise MergeError(f"{where} has no 'model'.")
    return text(entry["model"], f"{where}: 'model'"), settings(entry.get("parameters"), f"{where}, parameters")


def _slice(data: Mapping[str, Any], where: str) -> tuple[list[Any], dict[str, Any], int]:
    """The sources of a recipe's one slice as models, its settings, and how many layers it spans."""
    slices = data["slices"]
    if not isinstance(slices, list) or len(slices) != 1:
        raise MergeError(f"{where}: only one slice with all layers can be merged; stacking layers is mergekit's.")
    check_keys(slices[0], ("sources", "parameters"), f"{where}, slice 1")
    sources = slices[0].get("sources")
    if not isinstance(sources, list) or not sources:
        raise MergeError(f"{where}, slice 1 has no 'sources'.")
    for i, source in enumerate(sources):
        check_keys(source, ("model", "layer_range", "parameters"), f"{where}, slice 1, source {i + 1}")
    ranges = [source.get("layer_range") for source in sources]
    if any(not _whole(span) or span != ranges[0] for span in ranges):
        raise MergeError(f"{where}, slice 1: every 'layer_range' must be the same [0, number of layers], not {ranges}.")
    models = [{key: source[key] for key in source if key != "layer_range"} for source in sources]
    return models, settings(slices[0].get("parameters"), f"{where}, slice 1, parameters"), ranges[0][1]


def _whole(span: Any) -> bool:
    return (
        isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) and span[0] == 0 < span[1]
    )


def settings(data: Any, where: str) -> dict[str, Any]:
    """A mapping of names to settings, each a scalar, a gradient or a list of filters."""
    found = {key: well_formed(value, f"{where}: {key}") for key, value in mapping(data, where).items()}
    return {key: mapped(value, _numeric) for key, value in found.items()}


def _numeric(value: Any) -> Any:
    """YAML reads '1e-3' as a text; mergekit takes it for the number, and so do we."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_keys(data: Any, known: Iterable[str], where: str) -> None:
    """MergeError if `data` is no mapping, or has a key that is not known."""
    if not isinstance(data, dict):
        raise MergeError(f"{where} must be a mapping with {', '.join(known)}, not {kind(data)}.")
    for key in data:
        if key not in known:
            if key in _NOT_OURS:
                raise MergeError(f"{where}: mergelab does not do mergekit's '{key}'; {_NOT_OURS[key]}.")
            raise MergeError(f"{where} has an unknown key {_quoted(key)}. {did_you_mean(key, known)}")


def _quoted(key: Any) -> str:
    return brief(key) if isinstance(key, str) else f"'{brief(key)}'"


def mapping(data: Any, where: str) -> dict[str, Any]:
    """A mapping with texts for keys; empty for nothing."""
    if data is not None and not isinstance(data, dict):
        raise MergeError(f"{where} must be a mapping of names to values, not {kind(data)}.")
    return {key if isinstance(key, str) else brief(key): value for key, value in (data or {}).items()}


def text(value: Any, where: str) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise MergeError(f"{where} must be the name of something, not {brief(value)}.")
    return value.strip()


def flag(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise MergeError(f"{where} must be true or false, not {brief(value)}.")
    return value


def count(value: Any, where: str) -> int:
    """A whole number, at least 1."""
    if type(value) is not int or value < 1:
        raise MergeError(f"{where} must be a whole number, at least 1, not {brief(value)}.")
    return value


def size(value: Any, where: str) -> int:
    """Bytes: a whole number, or a text such as '5GB' (10⁹ bytes each) or '500MB'."""
    words = brief(value).strip("'\"").strip().upper()
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)B?", words)
    found = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if found < 1:
        raise MergeError(f"{where} must be a number of bytes such as 5GB or 500MB, not {brief(value)}.")
    return found


def seed(value: Any, where: str) -> int:
    """What randomness starts from."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise MergeError(f"{where} must be a whole number from 0 up, not {brief(value)}.")
    return value


def steps(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """What is done after the merge: a step's name, or a mapping from names to settings."""
    where = where.replace("'", "")
    named = {value: None} if isinstance(value, str) else mapping(value, where)
    return {name: mapping(given, f"{where}, {name}") for name, given in named.items()}


def number(value: Any, where: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise MergeError(f"{where} must be a number, not {brief(value)}.")
    if not abs(value) < 1e30:
        raise MergeError(f"{where} must be a number between -1e30 and 1e30, not {brief(value)}.")
    return float(value)


def one_of(*known: str) -> Callable[[Any, str], str]:
    """A check that a value is one of these words."""

    def checked(value: Any, where: str) -> str:
        if value not in known:
            raise MergeError(f"{where} must be one of {', '.join(known)}, not {brief(value)}.")
        return value

    return checked


def dtype(value: Any, where: str) -> str | None:
    """The name of a number format, or None."""
    if value is not None and value not in DTYPES:
        raise MergeError(f"{where}: unknown dtype {brief(value)}. {did_you_mean(value, DTYPES)}")
    return value


def kind(value: Any) -> str:
    """What a YAML value is, in words."""
    return {dict: "a mapping", list: "a list", str: "a text", type(None): "nothing"}.get(type(value)) or brief(value)
