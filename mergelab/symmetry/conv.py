"""The symmetries of convolutional networks, read off the order of their layers: ResNets, and plain chains (VGG, MLPs).

Channels between two layers may stand in any order. In a ResNet all blocks that add to one another share an order, until
a shortcut with a convolution of its own begins a new one.
"""

import re
from collections.abc import Mapping

from mergelab.errors import MergeError
from mergelab.symmetry.groups import Slot, Units

Shapes = Mapping[str, tuple[int, ...]]
_NORM = {"weight": False, "bias": False, "running_mean": True, "running_var": True}  # part -> measured, not trained
_LAYER = re.compile(r"(?P<root>[A-Za-z_]\w*\.)?(?P<at>\d+)\.(?P<part>weight|bias|running_mean|running_var)")
_ROOTS = ("", "features.", "classifier.")


def resnet_units(shapes: Shapes) -> tuple[Units, ...]:
    """The groups of transformers' ResNets, basic or bottleneck. MergeError if a tensor is not a ResNet's."""
    top = "resnet." if any(name.startswith("resnet.") for name in shapes) else ""
    groups: dict[str, list[Slot]] = {"stem": _written(shapes, f"{top}embedder.embedder")}
    stream = "stem"
    for block in _numbered(shapes, rf"({re.escape(top)}encoder\.stages\.\d+\.layers\.\d+)\..*"):
        here = f"stage {block.split('.')[-3]}" if f"{block}.shortcut.convolution.weight" in shapes else stream
        convs = _numbered(shapes, rf"({re.escape(block)}\.layer\.\d+)\..*")
        inside = [stream, *(f"{block.removeprefix(top)} inside {i}" for i in range(len(convs) - 1)), here]
        for conv, source, target in zip(convs, inside, inside[1:]):
            groups.setdefault(source, []).append(_read(shapes, f"{conv}.convolution.weight"))
            groups.setdefault(target, []).extend(_written(shapes, conv))
        if here != stream:
            groups[stream].append(_read(shapes, f"{block}.shortcut.convolution.weight", site=False))
            groups[here].extend(_written(shapes, f"{block}.shortcut"))
        stream = here
    if "classifier.1.weight" in shapes:
        groups[stream].append(_read(shapes, "classifier.1.weight"))
    else:  # what the last blocks write is the output
        outputs = {slot.name for slot in groups.pop(stream)}
        return _checked(groups, shapes, outputs)
    return _checked(groups, shapes, {"classifier.1.bias"})


def is_chain(shapes: Shapes) -> bool:
    """Whether the names are those of a plain nn.Sequential (`0.weight`), or of features and a classifier after them."""
    found = [_LAYER.fullmatch(name) for name in shapes]
    return bool(found) and all(match and (match["root"] or "") in _ROOTS for match in found)


def units_of_chain(shapes: Shapes) -> tuple[Units, ...]:
    """The groups of a chain of layers, each between two weights that follow one another.

    A norm's tensors belong to the weight before it; a channel that is flattened for a linear layer owns as many columns
    as it has positions. MergeError if two layers do not fit one behind the other.
    """
    layers: dict[tuple[int, int], dict[str, str]] = {}
    for name in shapes:
        match = _LAYER.fullmatch(name)
        assert match, name
        layers.setdefault((_ROOTS.index(match["root"] or ""), int(match["at"])), {})[match["part"]] = name
    groups: dict[str, list[Slot]] = {}
    open_slots: list[Slot] = []
    for _, parts in sorted(layers.items()):
        weight = parts.get("weight", "")
        if weight and len(shapes[weight]) > 1:
            if open_slots:
                groups[open_slots[0].name.removesuffix(".weight")] = [
                    *open_slots,
                    _read_by(shapes, weight, open_slots[0]),
                ]
            open_slots = [Slot(weight, 0, shapes[weight][0])]
            parts = {"bias": parts["bias"]} if "bias" in parts else {}
        if open_slots:
            open_slots += [
                Slot(name, 0, shapes[name][0], statistic=_NORM[part])
                for part, name in parts.items()
                if shapes[name] == (open_slots[0].units,)
            ]
    last = {slot.name for slot in open_slots}
    return _checked(groups, shapes, last)


def _read_by(shapes: Shapes, name: str, source: Slot) -> Slot:
    columns, units = shapes[name][1], source.units
    flat = len(shapes[name]) == 2 and len(shapes[source.name]) > 2 and columns % units == 0
    if columns != units and not flat:
        raise MergeError(f"'{name}' reads {columns} channels, but '{source.name}' before it writes {units}.")
    return Slot(name, 1, units, stride=columns // units, width=columns // units, site=True)


def _written(shapes: Shapes, at: str) -> list[Slot]:
    """What a convolution and the norm behind it hold for each channel that they write."""
    names = {f"{at}.convolution.weight": False} | {f"{at}.normalization.{part}": kind for part, kind in _NORM.items()}
    return [Slot(name, 0, shapes[name][0], statistic=kind) for name, kind in names.items() if name in shapes]


def _read(shapes: Shapes, name: str, site: bool = True) -> Slot:
    return Slot(name, 1, shapes[name][1], site=site)


def _numbered(shapes: Shapes, pattern: str) -> list[str]:
    """The distinct first parts of the names that match, in order of the numbers in them."""
    found = {match[1] for name in shapes if (match := re.fullmatch(pattern, name))}
    found = {at for at in found if f"{at}.convolution.weight" in shapes or ".layer." not in at}
    return sorted(found, key=lambda at: [int(number) for number in re.findall(r"\d+", at)])


def _checked(groups: Mapping[str, list[Slot]], shapes: Shapes, still: set[str]) -> tuple[Units, ...]:
    """The groups, if their slots agree about their size and every tensor is in one of them or stands still."""
    for name, slots in groups.items():
        for slot in slots:
            if slot.units != slots[0].units:
                found = f"'{slots[0].name}' has {slots[0].units} channels and '{slot.name}' has {slot.units}"
                raise MergeError(f"{found}, but both are of '{name}'. Merge without alignment: 'align: none'.")
    placed = {slot.name for slots in groups.values() for slot in slots} | still
    if left := [name for name in shapes if name not in placed]:
        raise MergeError(
            f"'{left[0]}' has no place in the order of layers that was found. Merge without alignment: 'align: none'."
        )
    return tuple(Units(name, tuple(slots)) for name, slots in groups.items())
