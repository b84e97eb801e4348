"""A classifier's last layer: each task keeps its expert's own, for labels are no matter of statistics."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.repair.sites import CLASSIFIERS


def has_head(model: nn.Module) -> bool:
    """Whether the model ends in a classifier."""
    return bool(_heads(model))


def with_head(model: nn.Module, expert: nn.Module) -> nn.Module:
    """A copy of a classifier with the head of an expert; a model without one comes back itself.

    MergeError if the expert has none, or one of other labels. An expert that was aligned must be given as aligned.
    """
    return wearing(model, head_of(expert)) if has_head(model) else model


def head_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's head, by their names in the model; none if it has none."""
    return {
        f"{head}.{name}": tensor
        for head in _heads(model)
        for name, tensor in model.get_submodule(head).state_dict().items()
    }


def wearing(model: nn.Module, head: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a classifier with another head, as `head_of` gives it; MergeError if it does not fit."""
    ours, theirs = ({name: list(t.shape) for name, t in one.items()} for one in (head_of(model), head))
    if ours != theirs:
        raise MergeError(
            f"The head of the merged model and that of the expert are not the same: {ours} and {theirs or 'none'}. "
            "A task keeps its expert's own head, so both must have the same labels."
        )
    made = copy.deepcopy(model)
    made.load_state_dict(head, strict=False)
    return made


def _heads(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children() if name in CLASSIFIERS]
