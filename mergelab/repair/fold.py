"""Turns a patch into weights: the same function, as an ordinary model. What has no place in them is listed.

Sites are folded in the reverse of the forward pass, so that a consumer's own correction is in its weights before a
shift from further up is pushed through it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.model import answered
from mergelab.repair.patch import Corrected, Patch, applied
from mergelab.repair.sites import kind_of
from mergelab.repair.statistics import Batch, run


@dataclass(frozen=True)
class _Flow:
    """What one forward pass shows. readers: norm without biases -> the linear maps that read its output; order: the
    linear maps, as they run."""

    readers: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]


@dataclass(frozen=True)
class Folded:
    """A folded model. left: the patch of the sites that could not be folded; it can still be worn on top.

    difference: the largest |hooked - folded| of the outputs on the batch, `left` worn; scale: the largest output.
    """

    model: nn.Module
    left: Patch
    difference: float
    scale: float

    @property
    def unfolded(self) -> tuple[str, ...]:
        """The names of the sites that the weights lack."""
        return tuple(self.left.sites)


@torch.no_grad()
def fold(model: nn.Module, patch: Patch, batch: Batch) -> Folded:
    """A copy of the model with the patch in its weights. batch: a few samples, to find who reads what and to compare.

    The model must have biases where a shift is to go (`with_biases`), else those sites stay unfolded. MergeError if
    the folded model is not the hooked one: then its architecture routes activations in a way that is not known here.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise MergeError("Parts of the model are kept on disk or elsewhere. Fold it where all of it fits into memory.")
    folded, flow = copy.deepcopy(model), _flow(model, batch)
    left = [name for name in reversed(patch.sites) if not _folded_in(folded, patch.sites[name], flow)]
    rest = patch.only(left)
    with applied(model, patch):
        hooked = _output(model, batch)
    with applied(folded, rest):
        difference = float((_output(folded, batch) - hooked).abs().max())
    scale = float(hooked.abs().max())
    if not difference <= 1e-3 * max(scale, 1e-3):
        raise MergeError(
            f"This model cannot be folded exactly: hooked and folded outputs differ by {difference:.3g}, of at most "
            f"{scale:.3g}. Keep the repair beside the model instead (`--sidecar`)."
        )
    return Folded(folded, rest, difference, scale)


def _output(model: nn.Module, batch: Batch) -> Tensor:
    return answered(run(model, batch)).float()


def _flow(model: nn.Module, batch: Batch) -> _Flow:
    """Which linear maps read the very tensor that a norm puts out, seen in one forward pass of two samples."""
    norms = {n: m for n, m in model.named_modules() if kind_of(m) == "norm" and getattr(m, "bias", None) is None}
    readers = {n: m for n, m in model.named_modules() if kind_of(m) in ("linear", "conv1d")}
    made: dict[tuple[int, torch.Size], str] = {}
    alive, order, reads = [], [], {name: [] for name in norms}

    def put_out(name: str, output: Tensor) -> None:
        alive.append(output)  # so that its address is not given away again
        made[output.data_ptr(), output.shape] = name

    def read(name: str, taken: Tensor) -> None:
        order.append(name)
        if source := made.get((taken.data_ptr(), taken.shape)):
            reads[source].append(name)

    hooks = [m.register_forward_hook(lambda m, i, out, n=n: put_out(n, out)) for n, m in norms.items()]
    hooks += [m.register_forward_pre_hook(lambda m, i, n=n: read(n, i[0])) for n, m in readers.items()]
    try:
        run(model, {key: tensor[:2] for key, tensor in batch.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return _Flow({name: tuple(dict.fromkeys(found)) for name, found in reads.items()}, tuple(order))


def _folded_in(model: nn.Module, one: Corrected, flow: _Flow) -> bool:
    """Fold one site into the model's weights; False, and nothing done, if they have no place for it."""
    module = model.get_submodule(one.site.module)
    place, kind = next(module.parameters(), next(model.parameters())).device, kind_of(module)
    scale, shift = one.scale.double().to(place), one.shift.double().to(place)
    if one.site.side == "in":
        return kind in ("linear", "conv1d") and _fold_input(module, scale, shift)
    if kind == "norm" and getattr(module, "bias", None) is None:
        return _fold_bare_norm(module, [model.get_submodule(n) for n in flow.readers[one.site.module]], scale, shift)
    if kind == "embedding":
        return _fold_embedding(model, module, scale, shift)
    return _fold_block(model, one, flow) if kind == "block" else _fold_output(module, scale, shift)


def _fold_output(module: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """y -> s·y + t: the rows of the weight times s (Conv1D: its columns), the bias s·b + t."""
    if module.weight is None or (module.bias is None and shift.any()):
        return False
    columns = kind_of(module) == "conv1d"
    rows = scale if columns else scale.reshape(-1, *[1] * (module.weight.dim() - 1))
    _set(module.weight, module.weight.double() * rows)
    if module.bias is not None:
        _set(module.bias, module.bias.double() * scale + shift)
    return True


def _fold_input(module: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """x -> s·x + t: the bias grows by W t, then the columns of the weight are scaled (Conv1D: its rows)."""
    if not _add_through(module, shift):
        return False
    rows = kind_of(module) == "conv1d"
    _set(module.weight, module.weight.double() * (scale[:, None] if rows else scale))
    return True


def _add_through(module: nn.Module, shift: Tensor) -> bool:
    """A shift of a map's input, as a shift of its bias; False if it has none and needs one."""
    if not shift.any():
        return True
    if module.bias is None:
        return False
    weight, shift = module.weight.double(), shift.to(module.weight.device)
    _set(module.bias, module.bias.double() + (shift @ weight if kind_of(module) == "conv1d" else weight @ shift))
    return True


def _fold_bare_norm(norm: nn.Module, readers: list[nn.Module], scale: Tensor, shift: Tensor) -> bool:
    """A norm without biases: the scale goes into its weight, the shift into the bias of all who read it."""
    if shift.any() and not (readers and all(reader.bias is not None for reader in readers)):
        return False
    for reader in readers:
        _add_through(reader, shift)
    offset = _offset(norm)
    _set(norm.weight, scale * (offset + norm.weight.double()) - offset)
    return True


def _offset(norm: nn.Module) -> float:
    """1 if the norm multiplies by 1 + weight, 0 if by the weight: seen from what it does with a weight of zero."""
    probe = copy.deepcopy(norm)
    probe.weight.zero_()
    return float(probe(torch.linspace(-1, 1, len(probe.weight)).to(probe.weight)[None]).abs().max() > 0)


def _fold_embedding(model: nn.Module, table: nn.Module, scale: Tensor, shift: Tensor) -> bool:
    """E -> s·E + t, if nobody else uses the table: a tied head must keep the old one."""
    if sum(parameter is table.weight for m in model.modules() for parameter in m.parameters(recurse=False)) > 1:
        return False
    size = float(getattr(table, "scalar_embed_scale", 1.0))
    _set(table.weight, table.weight.double() * scale + shift / size)
    return True


def _fold_block(model: nn.Module, one: Corrected, flow: _Flow) -> bool:
    """A shift of what a whole layer puts out goes into the bias of the last map that writes to its stream. A scale
    per channel has no place: it would have to act on what skips the layer."""
    inside = [name for name in flow.order if name.startswith(f"{one.site.module}.")]
    if not inside or (one.scale != 1).any():
        return False
    last = model.get_submodule(inside[-1])
    if last.bias is None or last.bias.shape != one.shift.shape:
        return False
    _set(last.bias, last.bias.double() + one.shift.double().to(last.bias.device))
    return True


def _set(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values)
