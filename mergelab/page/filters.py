"""Settings for some modules alone, as lines of text that a form can list; written into a recipe as mergekit's filters.

An override is a line of text, `eta = 60 in model.layers.3.`: the setting, its value, and a part of the names that it is
for. Of several that are for one module the first holds.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mergelab.errors import MergeError
from mergelab.recipes.varying import elsewhere, shown, well_formed

_LINE = re.compile(r"\s*(?P<setting>\w+)\s*=\s*(?P<value>.+?)\s+in\s+(?P<filter>\S.*?)\s*")
_PLACED = re.compile(r"(?P<layer>.*?(?:^|\.)\d+\.)(?P<kind>.+)")


def line(setting: str, value: Any, part: str) -> str:
    """An override as text."""
    return f"{setting} = {shown(value)} in {part}"


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """The setting and the filter that a line says; MergeError if it is none."""
    match = _LINE.fullmatch(text)
    try:
        value = yaml.safe_load(match["value"]) if match else None
    except yaml.YAMLError:
        value = None
    if match is None or value is None:
        raise MergeError(f"'{text}' is no override. Write a setting, a value and a part of names: eta = 60 in mlp.")
    checked = well_formed([{"filter": match["filter"], "value": value}], f"'{text}'")
    return match["setting"], checked[0]


def with_overrides(settings: Mapping[str, Any], lines: Iterable[str]) -> dict[str, Any]:
    """A form's settings with the overrides before them. Those of settings that the method has not are left aside."""
    found = dict(settings)
    filters: dict[str, list[dict[str, Any]]] = {}
    for setting, entry in map(parsed, lines):
        if setting in found:
            filters.setdefault(setting, []).append(entry)
    return found | {name: [*entries, {"value": found[name]}] for name, entries in filters.items()}


def apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A recipe's settings as a form shows them: one plain value each, and the rest as overrides."""
    plain, lines = {}, []
    for name, setting in settings.items():
        rest = elsewhere(setting)
        if isinstance(setting, list) and isinstance(setting[0], dict):
            lines += [line(name, e["value"], e["filter"]) for e in setting if e.get("filter", "*") != "*"]
        if isinstance(rest, list):
            lines.append(line(name, rest, "*"))
        plain[name] = rest[0] if isinstance(rest, list) else rest
    return plain, lines


def parts_of(module: str) -> dict[str, str]:
    """What a filter may say to mean a module alone, all of its kind, or all of its layer."""
    match = _PLACED.fullmatch(module)
    return {"module": module, "kind": match["kind"] if match else module, "layer": match["layer"] if match else module}


def place_of(text: str) -> tuple[str, str]:
    """The setting and the part of names that a line is about."""
    setting, entry = parsed(text)
    return setting, entry["filter"]
