"""The symmetry of a model, found from its configuration and the names and shapes of its tensors. Reads no weights."""

import re
from collections.abc import Mapping
from typing import Any

from mergelab.config import count_in, names_in, part_of, share_in
from mergelab.errors import MergeError, did_you_mean
from mergelab.maths.heads import Freedom
from mergelab.symmetry.conv import is_chain, resnet_units, units_of_chain
from mergelab.symmetry.families import FAMILIES, STILL, Family, Rule, rules_of
from mergelab.symmetry.groups import Group, Heads, Slot, Symmetry, Units

Shapes = Mapping[str, tuple[int, ...]]
_PARTS = "qkv"
_BARE = re.compile(
    "(Bert|Roberta|ViT|Llama|Mistral|Qwen[23]|Gemma2?|Phi3|GPT2|GPTNeoX|CLIPVision|CLIPText|T5(Encoder)?)Model"
)
KNOWN = (*FAMILIES, "resnet")


def symmetry_of(shapes: Shapes, config: Mapping[str, Any]) -> Symmetry:
    """The groups of a model. shapes: its floating-point tensors; config: its config.json.

    MergeError if the architecture is not known, or holds a tensor that its family's rules do not.
    """
    family = None if config.get("model_type") is None else str(config["model_type"])
    if family == "resnet":
        return Symmetry(family, resnet_units(shapes))
    if family in FAMILIES:
        return Symmetry(family, _groups(FAMILIES[family], shapes, config, family))
    if family in (None, "sequential", "vgg", "mlp") and is_chain(shapes):
        return Symmetry("sequential", units_of_chain(shapes))
    raise MergeError(
        f"The symmetries of '{family}' are not known, so its neurons cannot be put in another order safely. "
        f"{did_you_mean(str(family), KNOWN)} Merge without alignment: 'align: none'."
    )


def _groups(family: Family, shapes: Shapes, config: Mapping[str, Any], called: str) -> tuple[Group, ...]:
    """The groups that the rules find, in the order of their first tensors' rules: the residual stream comes first."""
    rules, found = rules_of(family, shapes), {}
    known = re.compile(f"{STILL}|{family.still}")
    left = {name for name in shapes if not known.fullmatch(name)}
    for rule in rules:
        pattern = re.compile(rule.pattern)
        for name in sorted(shapes, key=_natural):
            if match := pattern.fullmatch(name):
                parts = match.groupdict()
                kind = "attention" if rule.kind in (*_PARTS, "o", "qkv", "order") else rule.kind
                found.setdefault((kind, parts.get("at") or ""), []).append((rule, name, parts.get("layer") or "0"))
                left.discard(name)
    if left:
        raise MergeError(
            f"'{min(left)}' is no tensor that the symmetries of '{called}' account for. "
            "Merge without alignment: 'align: none'."
        )
    groups = [_group(kind, at, slots, family, shapes, config) for (kind, at), slots in found.items()]
    return tuple(group for group in groups if not _observed(group, config))


def _observed(group: Group, config: Mapping[str, Any]) -> bool:
    """Whether a group's units are the model's output, which has to stay in order: a bare model's stream, its pooler."""
    if group.name == "pooler":
        return not any(slot.site for slot in group.slots)
    built = names_in(config, "architectures")
    return group.name.endswith("residual") and bool(built) and all(_BARE.fullmatch(name) for name in built)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _group(kind: str, at: str, found: list, family: Family, shapes: Shapes, config: Mapping[str, Any]) -> Group:
    name = f"{kind} {at}".strip()
    if kind == "attention":
        return _heads(name, found, family, shapes, _config_at(config, at))
    slots = [slot for rule, tensor, _ in found for slot in _unit_slots(rule, tensor, shapes[tensor])]
    if len({slot.units for slot in slots}) > 1:
        raise MergeError(f"The tensors of '{name}' disagree about its size: {slots[0].name}, {slots[-1].name}.")
    return Units(name, tuple(slots))


def _unit_slots(rule: Rule, name: str, shape: tuple[int, ...]) -> list[Slot]:
    parts = 2 if rule.layout == "stacked" else 1  # gate and up in one tensor
    units = shape[rule.axis] // parts
    return [Slot(name, rule.axis, units, start=part * units, site=rule.site) for part in range(parts)]


def _heads(name: str, found: list, family: Family, shapes: Shapes, config: Mapping[str, Any]) -> Heads:
    count = count_in(config, "num_attention_heads", "n_head", "num_heads")
    if count is None:
        raise MergeError("config.json does not say how many attention heads there are ('num_attention_heads').")
    kv = count_in(config, "num_key_value_heads") or count
    width = _head_width(found, shapes, count, kv)
    layers = sorted({layer for _, _, layer in found}, key=int)
    slots = []
    for rule, tensor, layer in found:
        for part, start, stride in _parts(rule, count, kv, width):
            units = count if part in "qo" else kv
            size = 1 if part == "order" else width
            slots.append(
                Slot(tensor, rule.axis, units, start, stride or size, size, part, layers.index(layer), site=rule.site)
            )
    share = _rotary_share(config)
    rotary = int(width * share) if family.positions == "rotary" else 0
    freedom = Freedom(rotary, free=family.positions != "normed")
    return Heads(name, tuple(slots), kv, count // kv, width, len(layers), freedom)


def _head_width(found: list, shapes: Shapes, count: int, kv: int) -> int:
    """Dimensions of one head, by the size of what reads the heads; MergeError if the heads do not divide it."""
    rule, tensor, _ = next(item for item in found if item[0].kind == "o")
    size = shapes[tensor][rule.axis]
    if size % count or count % kv:
        raise MergeError(f"'{tensor}' is {list(shapes[tensor])}, which {count} heads in {kv} groups do not divide.")
    return size // count


def _parts(rule: Rule, count: int, kv: int, width: int) -> list[tuple[str, int, int]]:
    """(role, start, stride) of each part that a tensor holds; stride 0: no gaps."""
    if rule.layout == "stacked":
        return [("q", 0, 0), ("k", count * width, 0), ("v", (count + kv) * width, 0)]
    if rule.layout == "interleaved":
        return [(part, i * width, 3 * width) for i, part in enumerate(_PARTS)]
    return [(rule.kind, 0, 0)]


def _rotary_share(config: Mapping[str, Any]) -> float:
    """The share of a head's dimensions that turn with the position."""
    said = share_in(part_of(config, "rope_parameters"), "partial_rotary_factor")
    if said is None:
        said = share_in(config, "partial_rotary_factor", "rotary_pct")
    return said if said is not None else 0.25 if config.get("model_type") == "gpt_neox" else 1.0


def _config_at(config: Mapping[str, Any], at: str) -> Mapping[str, Any]:
    """The part of a two-tower configuration that is this tower's."""
    return part_of(config, f"{at.split('_')[0]}_config") or config
