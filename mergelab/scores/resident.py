"""One model that stays in memory while its weights are replaced in place: nothing is written or loaded again."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.model import Running, loaded_as, running, tokenizer_of
from mergelab.planning.plan import Plan


class Resident:
    """The base of a plan, loaded for itself alone, with the tokenizer that a merge would have.

    Its tensors are known by their names on disk.
    """

    def __init__(self, work: Plan):
        run = running(work.base.folder)
        if work.tokenizer is not None:
            run = replace(run, tokenizer=tokenizer_of(work.tokenizer))
        if work.template is not None and run.tokenizer is not None:
            run.tokenizer.chat_template = work.template
        self.run: Running = run
        self.places = places_of(run.model, work.names)

    @torch.no_grad()
    def put(self, name: str, tensor: Tensor) -> None:
        """Replace one tensor; the model keeps its own dtype and device."""
        self.places[name].copy_(tensor)


def places_of(model: torch.nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Name on disk -> the tensor of the model that it is loaded into; MergeError if one cannot be told."""
    held = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False))}
    found = {}
    for name in names:
        place = held.get(loaded_as(name, model, held) or "")
        if place is None:
            found_out = "and so it cannot be scored without being written out. Merge, and score the merge instead"
            raise MergeError(f"transformers gives '{name}' another name in memory, {found_out}.")
        if place.device.type == "meta":
            raise MergeError("The model does not fit into memory as a whole, which a sweep needs: it keeps it there.")
        found[name] = place
    return found
