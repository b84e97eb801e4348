"""Opens all that a recipe names and checks it before any work is done: who is whose base, what is merged, what is not.

Only headers and configuration are read here. A Plan that exists can be merged, but for NaN in a weight and a full disk.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mergelab.methods  # noqa: F401  fills METHODS
from mergelab.adapter import Adapter, is_adapter
from mergelab.align.calibration import bundled_batches
from mergelab.align.opened import InCoordinates
from mergelab.checkpoint import Checkpoint
from mergelab.errors import MergeError
from mergelab.maths.inner import finite, unmoved
from mergelab.maths.spectral import Delta, LowRank, dense
from mergelab.method import Layer, MergeMethod, method_named, step_named
from mergelab.recipe import Recipe
from mergelab.sources import folder_of

# Rows of these tables are looked up, not multiplied: their singular directions mix unrelated tokens or positions.
_TABLE = re.compile(
    r"embed|(^|[._])(emb|position|rel_pos)([._]|$)|(^|\.)(shared|wte|wpe|lm_head|decoder|relative_attention_bias)\.weight$"
    r"|^output\.weight$"
)
_HEAD = re.compile(r"(^|\.)lm_head\.weight$")


@dataclass(frozen=True)
class OpenedExpert:
    """An expert as deltas from the base: a checkpoint of its own, an adapter, or an adapter on another checkpoint."""

    name: str
    checkpoint: Checkpoint | InCoordinates | None  # None: the base's weights, changed by the adapter alone
    adapter: Adapter | None

    def delta(self, name: str, stored: Tensor, base: Tensor, rows: slice | None = None) -> Delta:
        """Expert minus base for one tensor or some rows of it, in the base's dtype; MergeError if it is not finite.

        stored: the base's entries as they lie in its file. An expert that holds the very same has an `unmoved` delta.
        """
        delta = self._delta(name, stored, base, rows)
        parts = (delta.left, delta.right) if isinstance(delta, LowRank) else (delta,)
        if not all(map(finite, parts)):
            raise _broken(name, f"expert '{self.name}'")
        return delta

    def _delta(self, name: str, stored: Tensor, base: Tensor, rows: slice | None) -> Delta:
        if isinstance(self.checkpoint, InCoordinates):
            return self._aligned(self.checkpoint, name, base, rows) - base
        own = self.checkpoint.read(name, rows) if self.checkpoint else stored
        same = own is stored or (own.dtype == stored.dtype and torch.equal(own, stored))
        full = unmoved(base) if same else own.to(base.dtype) - base
        if self.adapter is None or name not in self.adapter:
            return full
        change = self.adapter.delta(name, base if same else base + full, rows)
        return change if same else full + dense(change)

    def _aligned(self, view: InCoordinates, name: str, base: Tensor, rows: slice | None) -> Tensor:
        """Rows of a tensor in the base's coordinates; an adapter has those of the expert, so it is added before."""
        part = None if view.mixes_rows(name) else rows
        own = view.expert.read(name, part).to(base.dtype)
        if self.adapter is not None and name in self.adapter:
            own = own + dense(self.adapter.delta(name, own, part))
        moved = view.alignment.applied(name, own)
        return moved if part == rows else moved[rows]


@dataclass(frozen=True)
class Plan:
    """A checked recipe with its files found. names: the tensors to merge, first layers first; copied: those to copy."""

    recipe: Recipe
    method: MergeMethod
    settings: Mapping[str, Any]
    base: Checkpoint
    experts: tuple[OpenedExpert, ...]
    names: tuple[str, ...]
    copied: tuple[str, ...]
    skipped: Mapping[str, str]  # tensor -> why it is not merged
    notes: tuple[str, ...]
    steps: tuple[tuple[MergeMethod, Mapping[str, Any]], ...] = ()  # what is done after the method, with what settings

    @property
    def alignment(self) -> dict[str, dict[str, Any]]:
        """What was found for each expert that is aligned, by its name; matches them now if no tensor was read yet."""
        views = {expert.name: expert.checkpoint for expert in self.experts}
        return {name: view.facts() for name, view in views.items() if isinstance(view, InCoordinates)}

    def layer(self, name: str, device: torch.device | str, rows: slice | None = None) -> Layer:
        """Read one tensor of the base and of every expert, or some rows of it.

        MergeError names who holds NaN or an infinity.
        """
        stored = self.base.read(name, rows)
        if not finite(stored):
            raise _broken(name, f"the base '{self.base.source}'")
        base = widened(stored)
        deltas = tuple(expert.delta(name, stored, base, rows).to(device) for expert in self.experts)
        weights = torch.tensor([e.weight for e in self.recipe.experts], dtype=torch.float64, device=device)
        named = {"experts": self.recipe.names, "seed": self.recipe.seed}
        return Layer(name, base.to(device), deltas, weights, self.decomposes(name), **named)

    def decomposes(self, name: str) -> bool:
        """Whether a tensor is a matrix whose singular directions mean something."""
        shape = self.base.entries[name].shape
        table = bool(_TABLE.search(name)) and not self.recipe.decompose_embeddings
        return len(shape) == 2 and 0 not in shape and not table


def widened(stored: Tensor) -> Tensor:
    """A tensor in the dtype that it is merged in: float32, or float64 where it is stored so."""
    return stored.to(torch.promote_types(stored.dtype, torch.float32))


def plan(recipe: Recipe) -> Plan:
    """Open and check all that a recipe names; MergeError says what does not fit."""
    method = method_named(recipe.method)
    settings = method.checked(recipe.settings)
    steps = tuple((step, step.checked(given)) for name, given in recipe.then.items() for step in (step_named(name),))
    if method.base_apart:  # recipes for mergekit often list the base among the models
        recipe = replace(recipe, experts=tuple(expert for expert in recipe.experts if expert.source != recipe.base))
    _check_count(method, len(recipe.experts))
    base = _opened_base(recipe.base)
    tied = _tied_heads(base)
    names = sorted((n for n, entry in base.entries.items() if entry.mergeable and n not in tied), key=_model_order)
    copied = tuple(n for n, entry in base.entries.items() if not entry.mergeable)
    experts = tuple(_opened_expert(e.source, name, base) for e, name in zip(recipe.experts, recipe.names))
    for expert in experts:
        _check_tensors(expert, base, names)
    experts = tuple(_aligned(expert, base, recipe) for expert in experts)
    skipped = {n: f"{base.entries[n].dtype}, no floating-point weights: copied from the base" for n in copied}
    skipped |= dict.fromkeys(tied, "tied to the embeddings: not written") | _only_theirs(experts, base)
    notes = _notes(recipe, base, experts)
    return Plan(recipe, method, settings, base, experts, tuple(names), copied, skipped, notes, steps)


def _check_count(method: MergeMethod, given: int) -> None:
    """MergeError if a method cannot merge so few or so many experts."""
    beside = " beside the base" if method.base_apart else ""
    if given < method.fewest:
        raise MergeError(f"{method.title} needs at least {method.fewest} experts{beside}, and the recipe has {given}.")
    if method.most and given > method.most:
        wanted = f"the base with {method.most} other model" if method.most == 1 else f"{method.most} models{beside}"
        hint = "Take one away, or a method for more: NuSLERP takes two, Multi-SLERP and Karcher any number."
        raise MergeError(f"{method.title} merges {wanted}, and the recipe has {given}. {hint}")


def _model_order(name: str) -> list[tuple[int, str]]:
    """Sorts names as people count: layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _opened_base(source: str) -> Checkpoint:
    folder = folder_of(source)
    if is_adapter(folder):
        raise MergeError(f"'{source}' is an adapter, not a model. Name the model it was trained on as base_model.")
    base = Checkpoint(folder, source)
    if "quantization_config" in base.config or any(entry.quantised for entry in base.entries.values()):
        raise MergeError(f"'{source}' is quantised; merging needs its float weights. Take the unquantised model.")
    if not any(entry.mergeable for entry in base.entries.values()):
        raise MergeError(f"'{source}' has no floating-point weights to merge.")
    return base


def _opened_expert(source: str, name: str, base: Checkpoint) -> OpenedExpert:
    model, adapter = _split(source)
    folder = folder_of(model)
    if adapter is None and is_adapter(folder):
        return OpenedExpert(name, None, Adapter(folder, source, base.entries))
    same = folder.resolve() == base.folder.resolve()
    if adapter is None:
        return OpenedExpert(name, base if same else Checkpoint(folder, source), None)
    adapter_folder = folder_of(adapter)
    if not is_adapter(adapter_folder):
        raise MergeError(f"'{adapter}' has no adapter_config.json: what stands behind '+' must be a LoRA adapter.")
    own = None if same else Checkpoint(folder, model)
    return OpenedExpert(name, own, Adapter(adapter_folder, adapter, (own or base).entries))


def _split(source: str) -> tuple[str, str | None]:
    """FOLDER+ADAPTER -> (FOLDER, ADAPTER); a folder whose own name holds a '+' stays whole."""
    if "+" not in source or Path(source).expanduser().is_dir():
        return source, None
    model, _, adapter = source.partition("+")
    return model.strip(), adapter.strip()


def _check_tensors(expert: OpenedExpert, base: Checkpoint, names: list[str]) -> None:
    """MergeError if an expert's own weights lack a tensor that the base has, or have it in another shape."""
    if expert.checkpoint is None:
        return
    own = expert.checkpoint.entries
    for name in names:
        if name not in own:
            found = f"Expert '{expert.name}' has no tensor '{name}' that the base has."
            raise MergeError(f"{found} Was it fine-tuned from '{base.source}'?")
        mine, wanted = list(own[name].shape), list(base.entries[name].shape)
        if mine != wanted:
            found = f"'{name}' is {mine} in expert '{expert.name}', but {wanted} in the base '{base.source}'."
            raise MergeError(f"{found} Only models of one shape can be merged.")
        if not own[name].mergeable:
            found = f"'{name}' of expert '{expert.name}' is {own[name].dtype}"
            raise MergeError(f"{found}: quantised weights cannot be merged. Take the unquantised model.")


def _aligned(expert: OpenedExpert, base: Checkpoint, recipe: Recipe) -> OpenedExpert:
    """The expert in the base's coordinates, if the recipe asks for it; what was trained on the base is in them."""
    if recipe.align == "none" or expert.checkpoint is None or expert.checkpoint is base:
        return expert

    def data():
        return bundled_batches(recipe.base, base.folder)

    if recipe.align == "activations":
        data()  # says now that there is none
    return replace(expert, checkpoint=InCoordinates(expert.checkpoint, base, recipe.align, data=data))


def _tied_heads(base: Checkpoint) -> tuple[str, ...]:
    """Output heads that config.json ties to the embeddings: transformers neither wants nor writes them."""
    tied = base.config.get("tie_word_embeddings") is True
    return tuple(name for name in base if tied and _HEAD.search(name) and len(base) > 1)


def _only_theirs(experts: tuple[OpenedExpert, ...], base: Checkpoint) -> dict[str, str]:
    """Tensors that experts have and the base has not, with whose they are."""
    owners: dict[str, list[str]] = {}
    for expert in experts:
        for name in (expert.checkpoint or {}).keys() - base.keys():
            owners.setdefault(name, []).append(f"'{expert.name}'")
    return {name: f"the base has no such tensor, only {', '.join(owners[name])}" for name in sorted(owners)}


def _notes(recipe: Recipe, base: Checkpoint, experts: tuple[OpenedExpert, ...]) -> tuple[str, ...]:
    notes = []
    for expert in experts:
        trained_on = expert.adapter.base_name if expert.adapter and expert.checkpoint is None else ""
        if trained_on and Path(trained_on).name != Path(recipe.base).name:
            notes.append(f"Expert '{expert.name}' says it was trained on '{trained_on}'; the base is '{recipe.base}'.")
        if expert.checkpoint is base:
            notes.append(f"Expert '{expert.name}' is the base itself: its delta is zero.")
    if base.config.get("auto_map"):
        notes.append("The base's config.json points to Python code, which is not copied.")
    return tuple(notes)


def _broken(name: str, whose: str) -> MergeError:
    return MergeError(f"'{name}' of {whose} holds NaN or an infinity. It is broken: take another checkpoint of it.")
