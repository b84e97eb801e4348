"""Opens the base and the experts of a recipe, whatever their sources are: each expert is then deltas from the base."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergelab.align.opened import InCoordinates
from mergelab.errors import MergeError, broken
from mergelab.files.adapter import Adapter, is_adapter
from mergelab.files.checkpoint import Checkpoint
from mergelab.files.sources import folder_of, is_folder
from mergelab.maths.inner import finite, unmoved
from mergelab.maths.spectral import Delta, LowRank, dense
from mergelab.planning.fit import Fitted

_HEAD = re.compile(r"(^|\.)lm_head\.weight$")


@dataclass(frozen=True)
class OpenedExpert:
    """An expert as deltas from the base: a checkpoint of its own, an adapter, or an adapter on another checkpoint."""

    name: str
    # None: the base's weights, changed by the adapter alone
    checkpoint: Checkpoint | Fitted | InCoordinates | None
    adapter: Adapter | None

    def changed_as(self, name: str) -> str | None:
        """What the adapter calls one of the base's tensors; None if it does not change it."""
        if self.adapter is None:
            return None
        view = self.checkpoint.expert if isinstance(self.checkpoint, InCoordinates) else self.checkpoint
        called = view.fit.renamed.get(name, name) if isinstance(view, Fitted) else name
        return called if called in self.adapter else None

    def needs_all_rows(self, name: str) -> bool:
        """Whether some rows of the tensor cannot be had without all of them."""
        changed = self.changed_as(name)
        mixed = isinstance(self.checkpoint, InCoordinates) and self.checkpoint.mixes_rows(name)
        return mixed or (changed is not None and self.adapter.needs_all_rows(changed))

    def delta(self, name: str, stored: Tensor, base: Tensor, rows: slice | None = None) -> Delta:
        """Expert minus base for one tensor or some rows of it, in the base's dtype; MergeError if it is not finite.

        stored: the base's entries as they lie in its file. An expert that holds the very same has an `unmoved` delta.
        """
        delta = self._delta(name, stored, base, rows)
        if _is_finite(delta):
            return delta
        if _is_finite(self._delta(name, stored.double(), base.double(), rows)):
            raise MergeError(
                f"The change of '{name}' in expert '{self.name}' is beyond the range of float32, in which it is merged "
                "with this base. Take another checkpoint of it."
            )
        raise broken(name, f"expert '{self.name}'")

    def _delta(self, name: str, stored: Tensor, base: Tensor, rows: slice | None) -> Delta:
        if isinstance(self.checkpoint, InCoordinates):
            return self._aligned(self.checkpoint, name, base, rows) - base
        own = self.checkpoint.read(name, rows) if self.checkpoint else stored
        same = own is stored or (own.dtype == stored.dtype and torch.equal(own, stored))
        full = unmoved(base) if same else _difference(own, base)
        if (changed := self.changed_as(name)) is None:
            return full
        change = self.adapter.delta(changed, base if same else base + full, rows)
        return change if same else full + dense(change)

    def _aligned(self, view: InCoordinates, name: str, base: Tensor, rows: slice | None) -> Tensor:
        """Rows of a tensor in the base's coordinates; an adapter has those of the expert, so it is added before."""
        part = None if view.mixes_rows(name) else rows
        own = view.expert.read(name, part).to(base.dtype)
        if changed := self.changed_as(name):
            own = own + dense(self.adapter.delta(changed, own, part))
        moved = view.alignment.applied(name, own)
        return moved if part == rows else moved[rows]


def opened_base(source: str, find: Callable[[str], Path] = folder_of) -> Checkpoint:
    """The base's checkpoint; MergeError if it is none that can be merged."""
    folder = find(source)
    if is_adapter(folder):
        raise MergeError(f"'{source}' is an adapter, not a model. Name the model it was trained on as base_model.")
    base = Checkpoint(folder, source)
    if "quantization_config" in base.config or any(entry.quantised for entry in base.entries.values()):
        raise MergeError(f"'{source}' is quantised; merging needs its float weights. Take the unquantised model.")
    if not any(entry.mergeable for entry in base.entries.values()):
        raise MergeError(f"'{source}' has no floating-point weights to merge.")
    return base


def opened_expert(source: str, name: str, base: Checkpoint, find: Callable[[str], Path] = folder_of) -> OpenedExpert:
    """An expert, whatever its source is, upon the base; MergeError if it cannot be opened."""
    model, adapter = split(source)
    folder = find(model)
    if adapter is None and is_adapter(folder):
        return OpenedExpert(name, None, _opened_adapter(folder, source, base))
    same = folder.resolve() == base.folder.resolve()
    if adapter is None:
        return OpenedExpert(name, base if same else _opened_model(folder, source), None)
    adapter_folder = find(adapter)
    if not is_adapter(adapter_folder):
        raise MergeError(f"'{adapter}' has no adapter_config.json: what stands behind '+' must be a LoRA adapter.")
    own = None if same else _opened_model(folder, model)
    return OpenedExpert(name, own, _opened_adapter(adapter_folder, adapter, own or base))


def _opened_model(folder: Path, source: str) -> Checkpoint:
    """An expert's checkpoint; MergeError if it or its configuration is broken, whether that is needed or not."""
    own = Checkpoint(folder, source)
    _ = own.config
    return own


def _opened_adapter(folder: Path, source: str, base: Checkpoint) -> Adapter:
    """An adapter upon what it changes; MergeError if that has no place for a change."""
    adapter = Adapter(folder, source, base.entries)
    if lost := [name for name in tied_heads(base) if name in adapter]:
        raise MergeError(
            f"Adapter '{source}' changes '{lost[0]}', which '{base.source}' ties to its embeddings: the merged model "
            "has no place for that change. Take an adapter without it."
        )
    return adapter


def split(source: str) -> tuple[str, str | None]:
    """FOLDER+ADAPTER -> (FOLDER, ADAPTER); a folder whose own name holds a '+' stays whole."""
    if "+" not in source or is_folder(source):
        return source, None
    model, _, adapter = source.partition("+")
    return model.strip(), adapter.strip()


def tied_heads(base: Checkpoint) -> tuple[str, ...]:
    """Output heads that config.json ties to the embeddings: transformers neither wants nor writes them."""
    tied = base.config.get("tie_word_embeddings") is True
    return tuple(name for name in base if tied and _HEAD.search(name) and len(base) > 1)


def _is_finite(delta: Delta) -> bool:
    return all(map(finite, (delta.left, delta.right) if isinstance(delta, LowRank) else (delta,)))


def _difference(own: Tensor, base: Tensor) -> Tensor:
    wide = own.to(base.dtype)
    return wide - base if wide is own else wide.sub_(base)


def widened(stored: Tensor) -> Tensor:
    """A tensor in the dtype that it is merged in: float32, or float64 where it is stored so."""
    return stored.to(torch.promote_types(stored.dtype, torch.float32))
