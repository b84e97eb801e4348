"""A classifier's last layer: each task keeps its expert's own, for labels are no matter of statistics."""

import copy

from torch import nn

from mergelab.errors import MergeError

_HEADS = ("classifier", "score", "head", "fc")


def has_head(model: nn.Module) -> bool:
    """Whether the model ends in a classifier."""
    return any(name in _HEADS for name, _ in model.named_children())


def with_head(model: nn.Module, expert: nn.Module) -> nn.Module:
    """A copy of a classifier with the head of an expert; a model without one comes back itself.

    MergeError if the two heads have different labels. An expert that was aligned must be given as aligned.
    """
    if not has_head(model):
        return model
    made = copy.deepcopy(model)
    for name in (name for name, _ in model.named_children() if name in _HEADS):
        ours, theirs = made.get_submodule(name).state_dict(), expert.get_submodule(name).state_dict()
        if {key: tensor.shape for key, tensor in ours.items()} != {key: tensor.shape for key, tensor in theirs.items()}:
            raise MergeError(
                f"The heads '{name}' of the merged model and of the expert have different numbers of labels."
            )
        made.get_submodule(name).load_state_dict(theirs)
    return made
