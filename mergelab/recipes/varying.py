"""A setting that may differ from tensor to tensor, as mergekit writes it, and how deep in a model a tensor lies.

A setting is a scalar; or a gradient, a list of scalars from the first layer to the last; or a list of filters,
`[{filter: text, value: …}, …, {value: …}]`, whose first entry with that text in the tensor's name wins. This room knows
no setting by name.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Union

import yaml

from mergelab.errors import MergeError, brief, did_you_mean

# What yaml raises for a text that is none, or for a date, a number or a tag of which it can make nothing.
NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
Scalar = Union[bool, int, float, str]
MOST = 1000  # entries of a list: a few signs of YAML can stand for a thousand million of them
_INDEX = re.compile(r"^(?P<stack>.*?(?:^|\.))(?P<index>\d{1,9})\.")  # the first number counts a tensor's layers


def well_formed(setting: Any, where: str) -> Any:
    """The setting, a single filter as a list of one; MergeError if it is none of the three kinds."""
    if isinstance(setting, Scalar):
        return setting
    entries = [setting] if isinstance(setting, dict) else setting
    if not isinstance(entries, list) or not entries:
        raise MergeError(f"{where} must be a value, a list of values, or a list of filters, not {brief(setting)}.")
    _check_length(entries, where)
    if all(isinstance(entry, Scalar) for entry in entries):
        return list(entries)
    return [_filter(entry, where) for entry in entries]


def _filter(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise MergeError(f"{where}: {brief(entry)} stands among filters; write it as {{value: {brief(entry)}}}.")
    for key in entry:
        if key not in ("filter", "value"):
            hint = did_you_mean(key, ("filter", "value"))
            raise MergeError(f"{where}: an entry of a filter list has an unknown key '{key}'. {hint}")
    text, value = entry.get("filter"), entry.get("value")
    if text is not None and not isinstance(text, str):
        raise MergeError(f"{where}: 'filter' must be a part of a tensor's name, not {brief(text)}.")
    if isinstance(value, list):
        _check_length(value, where)
    plain = isinstance(value, list) and value and all(isinstance(item, Scalar) for item in value)
    if not plain and not isinstance(value, Scalar):
        raise MergeError(f"{where}: a filter needs a 'value', a number or a list of numbers, not {brief(value)}.")
    return ({} if text is None else {"filter": text}) | {"value": value}


def _check_length(entries: list[Any], where: str) -> None:
    if len(entries) > MOST:
        raise MergeError(f"{where} is a list of {len(entries)} entries; at most {MOST} are taken.")


def mapped(setting: Any, check: Callable[[Any], Any]) -> Any:
    """The setting with every scalar in it replaced by what `check` makes of it."""
    if isinstance(setting, dict):
        return setting | {"value": mapped(setting["value"], check)}
    return [mapped(entry, check) for entry in setting] if isinstance(setting, list) else check(setting)


def value_at(setting: Any, tensor: str, depth: float) -> Scalar | None:
    """What a setting says for one tensor; None if no filter is for it. depth: 0…1, see `depths`.

    Numbers of a gradient are interpolated linearly; of switches and words the one before is taken, as mergekit does.
    """
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], dict):
        found = (entry["value"] for entry in setting if entry.get("filter", "*") == "*" or entry["filter"] in tensor)
        value = next(found, None)
        return None if value is None else value_at(value, tensor, depth)
    return _interpolated(setting, depth)


def _interpolated(values: list[Scalar], depth: float) -> Scalar:
    place = depth * (len(values) - 1)
    before = int(place)
    if any(isinstance(value, (bool, str)) for value in values):
        return values[before]
    after = min(before + 1, len(values) - 1)
    return (1 - (place - before)) * values[before] + (place - before) * values[after]


def with_fallback(setting: Any, fallback: Any) -> Any:
    """The setting, and for tensors that none of its filters is for, another one."""
    if fallback is None or not _is_filters(setting) or any(entry.get("filter", "*") == "*" for entry in setting):
        return setting
    return setting + (fallback if _is_filters(fallback) else [{"value": fallback}])


def elsewhere(setting: Any) -> Any:
    """The part of a setting that holds where no filter is: a scalar or a gradient; None if there is none."""
    if not _is_filters(setting):
        return setting
    return next((entry["value"] for entry in setting if entry.get("filter", "*") == "*"), None)


def shown(setting: Any) -> str:
    """A setting in a few characters, for a person."""
    if isinstance(setting, bool):
        return "on" if setting else "off"
    if isinstance(setting, (int, float)):
        short = f"{setting:g}"
        return short if float(short) == setting else repr(setting)  # it is read back
    text = yaml.safe_dump(setting, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n...\n").strip()


def in_words(settings: Mapping[str, Any]) -> str:
    """Several settings in one line, for a person; '' if there are none."""
    return ", ".join(f"{name} {shown(setting)}" for name, setting in settings.items())


def depths(names: Iterable[str]) -> dict[str, float]:
    """How deep in its stack of layers each tensor lies: index/(layers - 1), as mergekit counts.

    0 for tensors outside the layers; 1 in a stack of one layer. Stacks are told apart by what stands before the number.
    """
    placed = {name: (match["stack"], int(match["index"])) for name, match in _matches(names)}
    last: dict[str, int] = {}
    for stack, index in placed.values():
        last[stack] = max(last.get(stack, 0), index)
    return {name: index / last[stack] if last[stack] else 1.0 for name, (stack, index) in placed.items()}


def layer_counts(names: Iterable[str]) -> dict[str, int]:
    """The number of layers in each stack, by what stands before the number in its tensors' names."""
    counts: dict[str, int] = {}
    for _, match in _matches(names):
        counts[match["stack"]] = max(counts.get(match["stack"], 0), int(match["index"]) + 1)
    return counts


def _matches(names: Iterable[str]) -> Iterator[tuple[str, re.Match]]:
    return ((name, match) for name in names if (match := _INDEX.match(name)))


def _is_filters(setting: Any) -> bool:
    return isinstance(setting, list) and isinstance(setting[0], dict)
