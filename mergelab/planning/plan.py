"""Opens all that a recipe names and checks it before any work is done: who is whose base, what is merged, what is not.

Only headers and configuration are read here. A Plan that exists can be merged, but for NaN in a weight and a full disk.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mergelab.methods  # noqa: F401  fills METHODS
from mergelab.align.calibration import bundled_batches
from mergelab.align.opened import NEED_DATA, InCoordinates
from mergelab.errors import MergeError, broken
from mergelab.files.checkpoint import FLOATS, Checkpoint
from mergelab.files.sources import companions, folder_of, is_same_source
from mergelab.files.stamp import check_readable
from mergelab.files.tokenizer import check_tokenizer, chosen_template, tokenizer_files
from mergelab.files.vocabulary import embedding_among, has_row_per_token
from mergelab.maths.inner import finite
from mergelab.maths.spectral import Delta
from mergelab.method import Layer, MergeMethod, method_named, step_named
from mergelab.planning.fit import Fit, fit, fitted, only_theirs
from mergelab.planning.opened import OpenedExpert, opened_base, opened_expert, tied_heads, widened
from mergelab.recipes.mergekit_yaml import COUNTS_BASE_ITSELF, FROM_ZERO, LEAVE_BASE, WITHOUT_WEIGHTS
from mergelab.recipes.recipe import Recipe
from mergelab.recipes.varying import depths, layer_counts, value_at, with_fallback

# Rows of these tables are looked up, not multiplied: their singular directions mix unrelated tokens or positions.
_TABLE = re.compile(
    r"embed|(^|[._])(emb|position|rel_pos)([._]|$)|(^|\.)(shared|wte|wpe|lm_head|decoder|relative_attention_bias)\.weight$"
    r"|^output\.weight$"
)


@dataclass(frozen=True)
class Plan:
    """A checked recipe with its files found. names: the tensors to merge, first layers first; copied: those to copy."""

    recipe: Recipe
    method: MergeMethod
    settings: Mapping[str, Any]  # each may vary from tensor to tensor (varying.py)
    base: Checkpoint
    experts: tuple[OpenedExpert, ...]
    names: tuple[str, ...]
    copied: tuple[str, ...]
    skipped: Mapping[str, str]  # tensor -> why it is not merged
    notes: tuple[str, ...]
    steps: tuple[tuple[MergeMethod, Mapping[str, Any]], ...] = ()  # what is done after the method, with what settings
    tokenizer: Path | None = None  # the folder that it is taken from; None: the base's
    template: str | None = None  # the chat template that goes with it; None: the tokenizer's own

    def written_dtype(self, name: str) -> torch.dtype:
        """The number format that a merged tensor is written in."""
        return FLOATS[self.base.entries[name].cast(self.recipe.written_dtype).dtype]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of the base and of every expert (of an adapter on its own: the adapter's)."""
        own = (e.checkpoint.folder if e.checkpoint is not None else e.adapter.path.parent for e in self.experts)
        return (self.base.folder, *own)

    @cached_property
    def depths(self) -> dict[str, float]:
        """How deep in its stack of layers each tensor lies, 0…1; those outside the layers are not in it."""
        return depths(self.names)

    def settings_at(self, name: str) -> dict[str, Any]:
        """The method's settings for one tensor: a scalar each, or a tuple where experts have values of their own."""
        depth, own = self.depths.get(name, 0.0), [expert.settings for expert in self.recipe.experts]
        found = {}
        for key, wide in self.settings.items():
            narrow = [with_fallback(settings.get(key, wide), wide) for settings in own]
            values = tuple(value_at(setting, name, depth) for setting in narrow)
            found[key] = values if any(key in settings for settings in own) else value_at(wide, name, depth)
        return found

    def steps_at(self, name: str) -> list[tuple[MergeMethod, dict[str, Any]]]:
        """The steps after the method, each with its settings for one tensor: a scalar each."""
        depth = self.depths.get(name, 0.0)
        return [(step, {k: value_at(v, name, depth) for k, v in settings.items()}) for step, settings in self.steps]

    def weights_at(self, name: str) -> list[float]:
        """The experts' weights for one tensor; MergeError if a filter list says nothing of it."""
        depth = self.depths.get(name, 0.0)
        weights = [value_at(expert.weight, name, depth) for expert in self.recipe.experts]
        for expert, weight in zip(self.recipe.names, weights):
            if weight is None:
                hint = "End the list with an entry that has a 'value' and no 'filter'."
                raise MergeError(f"The weight of expert '{expert}' has no filter that is for '{name}'. {hint}")
        return weights

    @property
    def alignment(self) -> dict[str, dict[str, Any]]:
        """What was found for each expert that is aligned, by its name; matches them now if no tensor was read yet."""
        views = {expert.name: expert.checkpoint for expert in self.experts}
        return {name: view.facts() for name, view in views.items() if isinstance(view, InCoordinates)}

    def layer(self, name: str, device: torch.device | str, rows: slice | None = None) -> Layer:
        """Read one tensor of the base and of every expert, or some rows of it.

        MergeError names who holds NaN or an infinity.
        """
        stored = self._stored(name, rows)
        base = widened(stored)
        deltas = tuple(expert.delta(name, stored, base, rows).to(device) for expert in self.experts)
        weights = torch.tensor(self.weights_at(name), dtype=torch.float64, device=device)
        named = {"experts": self.recipe.names, "seed": self.recipe.seed, "drawn_as": self.drawn_as(name)}
        return Layer(name, base.to(device), deltas, weights, self.decomposes(name), **named)

    def drawn_as(self, name: str) -> str:
        """The name that a tensor's random numbers go by: that of the first table of tokens of its shape, or its own.

        Embeddings and a head that are one table in memory are often two in a file, and not every configuration says so:
        by the same numbers they stay equal.
        """
        shape = self.base.entries[name].shape
        alike = (n for n in self.names if has_row_per_token(n) and self.base.entries[n].shape == shape)
        return next(alike, name) if has_row_per_token(name) else name

    def delta(self, name: str, expert: int, device: torch.device | str, rows: slice | None = None) -> Delta:
        """What one expert changes of a tensor, or of some rows of it; expert: its place. MergeError as of `layer`."""
        stored = self._stored(name, rows)
        return self.experts[expert].delta(name, stored, widened(stored), rows).to(device)

    def _stored(self, name: str, rows: slice | None) -> Tensor:
        stored = self.base.read(name, rows)
        if not finite(stored):
            raise broken(name, f"the base '{self.base.source}'")
        return stored

    def origins(self, name: str) -> list[Hashable | None]:
        """For each expert, what cannot change without its delta's changing; None where that is not so simple."""
        base = self.base.stamp(name)
        plain = [type(e.checkpoint) is Checkpoint and e.adapter is None for e in self.experts]
        return [(name, base, e.checkpoint.stamp(name)) if p else None for e, p in zip(self.experts, plain)]

    def needs_all_rows(self, name: str) -> bool:
        """Whether some rows of an expert's tensor cannot be had without all of them."""
        return any(expert.needs_all_rows(name) for expert in self.experts)

    def decomposes(self, name: str) -> bool:
        """Whether a tensor is a matrix whose singular directions mean something."""
        table = is_table(name) and not self.recipe.decompose_embeddings
        return is_matrix(self.base.entries[name].shape) and not table


def is_table(name: str) -> bool:
    """Whether a tensor's rows are looked up: embeddings, positions, output heads."""
    return bool(_TABLE.search(name))


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a tensor of that shape has singular values."""
    return len(shape) == 2 and 0 not in shape


def plan(recipe: Recipe, find: Callable[[str], Path] = folder_of) -> Plan:
    """Open and check all that a recipe names; MergeError says what does not fit.

    find: the folder of a source; `check` has one that fetches no weights.
    """
    method = method_named(recipe.method)
    settings = _settings(method, recipe)
    steps = tuple((step_named(name), complete(step_named(name), given)) for name, given in recipe.then.items())
    recipe = without_base(recipe, method)
    check_count(method, len(recipe.experts))
    base = opened_base(recipe.base, find)
    tied, names = tied_heads(base), names_to_merge(base)
    copied = tuple(n for n, entry in base.entries.items() if not entry.mergeable)
    experts = tuple(opened_expert(e.source, name, base, find) for e, name in zip(recipe.experts, recipe.names))
    fits = tuple(fit_of(expert, base, names, recipe) for expert in experts)
    extra = _only_theirs(experts, fits, base)
    experts = tuple(_fitted(expert, found, base) for expert, found in zip(experts, fits))
    experts = tuple(_aligned(expert, base, recipe) for expert in experts)
    _check_layers(recipe, names)
    skipped = {name: _why_copied(name, base, experts) for name in copied}
    skipped |= dict.fromkeys(tied, "tied to the embeddings: not written") | extra
    notes = (*_idle_notes(recipe, method), *_notes(recipe, base, experts), *(n for found in fits for n in found.notes))
    tokenizer, template = _tokenizer(recipe, base, experts, find)
    check_readable([*companions(base.folder), *(tokenizer_files(tokenizer) if tokenizer else ())])
    found = (tuple(names), copied, skipped, notes, steps, tokenizer, template)
    made = Plan(recipe, method, settings, base, experts, *found)
    for name in names:
        method.check_weights(made.weights_at(name), made.settings_at(name))
    return made


def without_base(recipe: Recipe, method: MergeMethod) -> Recipe:
    """The recipe without the base among its experts, where it is none: recipes for mergekit often list it.

    Its folder by another name is the base, too.
    """
    if not _leaves_base(method) or recipe.settings.get(FROM_ZERO):
        return recipe
    return replace(recipe, experts=tuple(e for e in recipe.experts if not is_same_source(e.source, recipe.base)))


def _leaves_base(method: MergeMethod) -> bool:
    return method.name in (*LEAVE_BASE, *COUNTS_BASE_ITSELF)


def _tokenizer(
    recipe: Recipe, base: Checkpoint, experts: Sequence[OpenedExpert], find: Callable[[str], Path]
) -> tuple[Path | None, str | None]:
    """The folder that the tokenizer comes from, and the chat template; None for what is the base's own."""
    folder = None
    if recipe.tokenizer_source not in (None, "base"):
        folder, table = find(recipe.tokenizer_source), embedding_among(base.entries)
        check_tokenizer(recipe.tokenizer_source, folder, base.folder, base.entries[table].shape[0] if table else None)
    folders = [base.folder, *(e.checkpoint.folder for e in experts if e.checkpoint is not None)]
    return folder, chosen_template(recipe.chat_template, folders)


def check_count(method: MergeMethod, given: int) -> None:
    """MergeError if a method cannot merge so few or so many experts."""
    beside = " beside the base" if _leaves_base(method) else ""
    if given < method.fewest:
        raise MergeError(f"{method.title} needs at least {method.fewest} experts{beside}, and the recipe has {given}.")
    if method.most and given > method.most:
        wanted = f"the base with {method.most} other model" if method.most == 1 else f"{method.most} models{beside}"
        hint = "Take one away, or a method for more: NuSLERP takes two, Multi-SLERP and Karcher any number."
        raise MergeError(f"{method.title} merges {wanted}, and the recipe has {given}. {hint}")


def names_to_merge(base: Checkpoint) -> list[str]:
    """The base's tensors that are merged, first layers first."""
    tied = tied_heads(base)
    return sorted((n for n, entry in base.entries.items() if entry.mergeable and n not in tied), key=_model_order)


def _settings(method: MergeMethod, recipe: Recipe) -> dict[str, Any]:
    """All settings of the method, checked, as those are that experts have of their own."""
    for expert, name in zip(recipe.experts, recipe.names):
        method.checked_own(expert.settings, name)
    return complete(method, recipe.settings)


def complete(method: MergeMethod, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method or a step, checked; where a filter list says nothing, its own default holds."""
    default = method.checked({})
    return {key: with_fallback(value, default[key]) for key, value in method.checked(given).items()}


def _check_layers(recipe: Recipe, names: list[str]) -> None:
    """MergeError if a recipe's slice is not the whole model."""
    found = max(layer_counts(names).values(), default=0)
    if recipe.layers and recipe.layers != found:
        raise MergeError(
            f"The recipe's slice has {recipe.layers} layers, but '{recipe.base}' has {found}. Only a slice with all "
            "layers can be merged."
        )


def _model_order(name: str) -> list[tuple[int, str]]:
    """Sorts names as people count: layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,9})", name)]


def _fitted(expert: OpenedExpert, found: Fit, base: Checkpoint) -> OpenedExpert:
    """The expert with its weights as the base would have them; MergeError if they do not fit."""
    if found.problems:
        others = len(found.problems) - 1
        more = f" (And {others} more such: `mergelab check` lists them all.)" if others else ""
        raise MergeError(found.problems[0] + more)
    if not expert.checkpoint:
        return expert
    expert = replace(expert, checkpoint=fitted(expert.checkpoint, base, found))
    if lost := [name for name in found.rows if expert.changed_as(name)]:
        raise MergeError(
            f"The adapter of expert '{expert.name}' changes '{lost[0]}', which does not fit the base's: its rows are "
            "of another vocabulary, or it is not there. Take an adapter without it, or merge it into its model first."
        )
    return expert


def fit_of(expert: OpenedExpert, base: Checkpoint, names: Sequence[str], recipe: Recipe) -> Fit:
    """How an expert's own weights fit the base's."""
    if expert.checkpoint is None or expert.checkpoint is base:
        return Fit()
    return fit(expert.name, expert.checkpoint, base, names, recipe.vocabulary, recipe.missing)


def _aligned(expert: OpenedExpert, base: Checkpoint, recipe: Recipe) -> OpenedExpert:
    """The expert in the base's coordinates, if the recipe asks for it; what was trained on the base is in them."""
    if recipe.align == "none" or expert.checkpoint is None or expert.checkpoint is base:
        return expert

    def data():
        return bundled_batches(recipe.base, base.folder)

    if recipe.align in NEED_DATA:
        data()  # says now that there is none
    return replace(expert, checkpoint=InCoordinates(expert.checkpoint, base, recipe.align, data=data))


def _only_theirs(experts: tuple[OpenedExpert, ...], fits: tuple[Fit, ...], base: Checkpoint) -> dict[str, str]:
    """Tensors that experts have and the base has not, with whose they are."""
    owners: dict[str, list[str]] = {}
    for expert, found in zip(experts, fits):
        for name in only_theirs(expert.checkpoint, base, found) if expert.checkpoint else ():
            owners.setdefault(name, []).append(f"'{expert.name}'")
    return {name: f"the base has no such tensor, only {', '.join(owners[name])}" for name in sorted(owners)}


def _why_copied(name: str, base: Checkpoint, experts: tuple[OpenedExpert, ...]) -> str:
    dtype = base.entries[name].dtype
    for expert in experts:
        theirs = expert.checkpoint.entries.get(name) if expert.checkpoint else None
        if theirs and theirs.mergeable:
            return f"{dtype} in the base, {theirs.dtype} in expert '{expert.name}': copied from the base, not merged"
    return f"{dtype}, no floating-point weights: copied from the base"


def _idle_notes(recipe: Recipe, method: MergeMethod) -> tuple[str, ...]:
    """What the recipe sets and no number depends on, as in mergekit."""
    given = dict.fromkeys(key for some in (recipe, *recipe.experts) for key in some.settings if key in method.idle)
    return tuple(f"'{key}' has no effect on a merge by {method.title}, here as in mergekit." for key in given)


def _notes(recipe: Recipe, base: Checkpoint, experts: tuple[OpenedExpert, ...]) -> tuple[str, ...]:
    notes = []
    for i, expert in enumerate(experts):
        trained_on = expert.adapter.base_name if expert.adapter and expert.checkpoint is None else ""
        if trained_on and Path(trained_on).name != Path(recipe.base).name:
            notes.append(f"Expert '{expert.name}' says it was trained on '{trained_on}'; the base is '{recipe.base}'.")
        if expert.checkpoint is base:
            notes.append(f"Expert '{expert.name}' is the base itself: its delta is zero.")
        elif before := next((e.name for e in experts[:i] if _places(e) == _places(expert)), None):
            notes.append(f"Expert '{expert.name}' is the same as expert '{before}': it counts twice.")
    if recipe.method in WITHOUT_WEIGHTS and any(expert.weight != 1 for expert in recipe.experts):
        notes.append(f"mergekit's '{recipe.method}' knows no 'weight'; here an expert's change is scaled by it first.")
    if not (base.folder / "config.json").is_file():
        notes.append("The base has no config.json, so the merge has none: transformers cannot load it.")
    if base.config.get("auto_map"):
        notes.append("The base's config.json points to Python code, which is not copied.")
    return tuple(notes)


def _places(expert: OpenedExpert) -> list[Path]:
    """The folders that an expert's weights are in."""
    own = [expert.checkpoint.folder] if expert.checkpoint is not None else []
    return [path.resolve() for path in own + ([expert.adapter.path] if expert.adapter else [])]
