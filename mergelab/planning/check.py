"""Says of a recipe all that can be known without weights: what its models are, what would be merged how, what is wrong.

Reads configuration, safetensors headers, adapters' configuration and tokenizers; of a model on the Hub nothing else is
fetched. `plan` stops at the first problem; here all of them are told at once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mergelab.errors import MergeError
from mergelab.files.checkpoint import Checkpoint, Entry
from mergelab.files.headers import headers_of
from mergelab.files.sources import revision_of
from mergelab.files.vocabulary import embedding_among, tokens_of
from mergelab.method import MergeMethod, method_named
from mergelab.planning.estimate import Estimate, estimate, is_spectral
from mergelab.planning.opened import OpenedExpert, opened_base, opened_expert, split
from mergelab.planning.plan import check_count, fit_of, names_to_merge, plan, without_base
from mergelab.planning.provenance import doubts, kinship
from mergelab.recipes.recipe import Recipe
from mergelab.words import counted


@dataclass(frozen=True)
class Model:
    """What is known of one model of the recipe. kind: 'base', 'full model', 'adapter', or 'model with an adapter'."""

    name: str
    source: str
    kind: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    vocabulary: int | None  # rows of the embeddings
    tokens: int | None  # that the tokenizer has
    tied: bool
    revision: str | None
    kinship: str  # what speaks for its being fine-tuned from the base


@dataclass(frozen=True)
class Check:
    """All that was found. problems keep the recipe from being merged; notes do not."""

    recipe: Mapping[str, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    models: tuple[Model, ...] = ()
    merged: Mapping[str, int] = field(default_factory=dict)  # how -> number of tensors
    skipped: Mapping[str, str] = field(default_factory=dict)
    estimate: Estimate | None = None

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"{self.problems[0]}{more}"
        experts, tensors = len(self.models) - 1, sum(self.merged.values())
        fit = f"{counted(experts, 'expert')} {'fits' if experts == 1 else 'fit'} the base"
        return f"{fit}: {counted(tensors, 'tensor')} can be merged, about {self.estimate.seconds:.0f} s."

    def lines(self) -> Iterator[str]:
        """All of it, a line each: models, what is merged how, what it takes, notes, problems, the verdict."""
        yield from map(_line, self.models)
        yield from (f"merged: {counted(count, 'tensor')}, {how}" for how, count in self.merged.items())
        yield from (f"not merged: {name}: {why}" for name, why in self.skipped.items())
        if takes := self.estimate:
            read, written, free = map(_size, (takes.read, takes.written, takes.disk_free))
            memory = f"memory about {_size(takes.memory)} (a further worker: {_size(takes.memory_per_worker)})"
            yield f"takes: reads {read}, writes {written} of {free} free, {memory}, {takes.seconds:.0f} s"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"problem: {problem}" for problem in self.problems)
        yield "The recipe cannot be merged as it is." if self.problems else "The recipe can be merged."

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def _line(model: Model) -> str:
    numbers = f"{model.parameters / 1e6:.4g} M {'/'.join(model.dtypes)}"
    parts = [f"{model.kind}, {counted(model.tensors, 'tensor')}, {numbers}"]
    parts += [f"embeddings of {model.vocabulary} rows{', tied' * model.tied}"] if model.vocabulary else []
    parts += [f"tokenizer of {model.tokens} tokens"] if model.tokens else []
    parts += [f"commit {model.revision}"] if model.revision else []
    return f"{model.name}: {'; '.join([*parts, *filter(None, [model.kinship])])}"


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def check(recipe: Recipe) -> Check:
    """Look at all that a recipe names. Never a MergeError: what is wrong is in `problems`."""
    with TemporaryDirectory(prefix="mergelab-") as scratch:
        return _check(recipe, lambda source: headers_of(source, Path(scratch)))


def _check(recipe: Recipe, find: Callable[[str], Path]) -> Check:
    problems: list[str] = []
    asked, recipe = recipe.to_dict(), _checked_method(recipe, problems)
    base = _attempt(lambda: opened_base(recipe.base, find), problems)
    if base is None:
        for expert in recipe.experts:
            for source in filter(None, split(expert.source)):
                _attempt(lambda source=source: find(source), problems)
        return Check(asked, tuple(dict.fromkeys(problems)))
    opened = [
        (expert.source, name, _attempt(lambda e=expert, n=name: opened_expert(e.source, n, base, find), problems))
        for expert, name in zip(recipe.experts, recipe.names)
    ]
    names = names_to_merge(base)
    for _, _, expert in opened:
        if expert:
            found = _attempt(lambda expert=expert: fit_of(expert, base, names, recipe), problems)
            problems += found.problems if found else []
    models = [_model(recipe.base, "base", base, base, None)]
    models += [_model(source, name, base, expert.checkpoint, expert) for source, name, expert in opened if expert]
    work = None if problems else _attempt(lambda: plan(recipe, find), problems)
    notes = [doubt for _, _, expert in opened if expert for doubt in doubts(expert, base, recipe.base)]
    if work is None:
        return Check(asked, tuple(dict.fromkeys(problems)), tuple(notes), tuple(models))
    title, matrices = work.method.title, sum(work.decomposes(name) for name in work.names)
    rest = len(work.names) - matrices
    merged = {f"{title}, as matrices": matrices, f"{title}, entry by entry": rest}
    merged = merged if is_spectral(work.method) else {title: len(work.names)}
    notes = tuple(dict.fromkeys([*work.notes, *notes]))
    return Check(asked, (), notes, tuple(models), merged, dict(work.skipped), estimate(work))


def _attempt(step: Callable[[], Any], problems: list[str]) -> Any:
    """What a step returns; None if it fails, and why goes to the problems."""
    try:
        return step()
    except MergeError as error:
        problems.append(str(error))
        return None


def _checked_method(recipe: Recipe, problems: list[str]) -> Recipe:
    """The recipe with the experts that its method makes of it; what is wrong with its settings goes to the problems."""
    method: MergeMethod | None = _attempt(lambda: method_named(recipe.method), problems)
    if method is None:
        return recipe
    for key, value in recipe.settings.items():
        _attempt(lambda key=key, value=value: method.checked({key: value}), problems)
    for expert, name in zip(recipe.experts, recipe.names):
        for key, value in expert.settings.items():
            _attempt(lambda k=key, v=value, n=name: method.checked_own({k: v}, n), problems)
    recipe = without_base(recipe, method)
    _attempt(lambda: check_count(method, len(recipe.experts)), problems)
    return recipe


def _model(source: str, name: str, base: Checkpoint, own: Any, expert: OpenedExpert | None) -> Model:
    adapter = expert.adapter if expert else None
    entries: Mapping[str, Entry] = own.entries if own is not None else {}
    parts = [*entries.values(), *(adapter.entries.values() if adapter else ())]
    folder = own.folder if own is not None else adapter.path.parent
    embedding = embedding_among(entries)
    tokens = _attempt(lambda: tokens_of(folder), [])
    kinds = {(True, False): "full model", (False, True): "adapter", (True, True): "model with an adapter"}
    return Model(
        name,
        source,
        kinds[own is not None, adapter is not None] if expert else "base",
        tensors=len(parts),
        parameters=sum(prod(entry.shape) for entry in parts),
        dtypes=tuple(sorted({entry.dtype for entry in parts})),
        vocabulary=entries[embedding].shape[0] if embedding and entries[embedding].shape else None,
        tokens=len(tokens) if tokens else None,
        tied=own is not None and own.config.get("tie_word_embeddings") is True,
        revision=revision_of(folder),
        kinship=(_attempt(lambda: kinship(expert, base), []) if expert else "") or "",
    )
