"""The moments of a model's activations at some sites, padding left out. Runs forward passes; changes nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.maths.moments import Moments, moments, nothing, rows_of
from mergelab.merging.memory import is_lack_of_memory
from mergelab.model import sees_encoder
from mergelab.repair.sites import Site

Batch = Mapping[str, Tensor]  # what the model's forward takes: input_ids and attention_mask, or pixel_values, …
_STATES = "last_hidden_state"  # of the several things that a whole model puts out
Statistics = dict[str, Moments]  # site -> moments, in the order in which the model comes by
Act = Callable[[Site, Tensor, Tensor | None], Tensor | None]  # (site, values, mask) -> new values, or None


def statistics(
    model: nn.Module, batches: Iterable[Batch], sites: Sequence[Site], *, drop_first: bool = False
) -> Statistics:
    """The moments at each site over all batches, in one pass. The order is that of the first visit.

    drop_first: leaves the first position of causal language models out where the residual stream is carried or
    written: it holds the attention sink, whose size can drown all others. Off, for the correction acts on that position
    too, and one that was fitted without it breaks the sink (`benchmarks/README.md` has the numbers).

    MergeError names the first site with NaN.
    """
    found: Statistics = {}

    def gather(site: Site, values: Tensor, mask: Tensor | None) -> None:
        part = moments(values, site.dim, mask)
        if not part.finite:
            raise MergeError(not_finite(site))
        found[site.name] = found.get(site.name, nothing(len(part.mean))).joined(part)

    with visited(model, sites, gather, drop_first=drop_first), torch.no_grad():
        for batch in batches:
            run(model, batch)
    if not found:
        raise MergeError("No calibration data came, or none of the sites lies on its way through the model.")
    return found


def rows_at(model: nn.Module, batch: Batch, sites: Sequence[Site], most: int) -> dict[str, Tensor]:
    """What passes each site on a batch, padding left out: site -> about `most` rows of it, (row, channel) float64."""
    kept: dict[str, Tensor] = {}

    def keep(site: Site, values: Tensor, mask: Tensor | None) -> None:
        rows = rows_of(values, site.dim, mask)
        kept[site.name] = rows[:: max(1, len(rows) // most)].double().cpu()

    with visited(model, sites, keep):
        run(model, batch)
    return kept


def not_finite(site: Site) -> str:
    return (
        f"The activations at '{site.name}' are not finite (NaN or infinity). The model is broken, or overflows: "
        "load it in float32, or take another checkpoint of it."
    )


def run(model: nn.Module, batch: Batch) -> Any:
    """One forward pass without gradients or caches; MergeError if the batch does not fit the model."""
    check_batch(model, batch)
    place = next(model.parameters()).device  # meta: accelerate fetches weights and moves inputs by itself
    given = {name: tensor if place.type == "meta" else tensor.to(place) for name, tensor in batch.items()}
    if "input_ids" in given and getattr(getattr(model, "config", None), "use_cache", None):
        given["use_cache"] = False
    with torch.no_grad():
        return model(**given)


def tried(model: nn.Module, batch: Batch) -> None:
    """MergeError if the model cannot be run on the first sample of inputs that somebody has made by hand."""
    check_batch(model, batch)
    try:
        run(model, {name: tensor[:1] for name, tensor in batch.items()})
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        if is_lack_of_memory(error):
            raise
        held = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in batch.items())
        why = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
        raise MergeError(
            f"{type(model).__name__} does not take the calibration data, which holds {held}: {why}"
        ) from None


def check_batch(model: nn.Module, batch: Batch) -> None:
    """MergeError if token ids are none of the vocabulary, or if masks or images do not have the shape they need."""
    config = getattr(model, "config", None)
    for name in ("input_ids", "decoder_input_ids"):
        if name in batch:
            _check_ids(batch[name], name, getattr(config, "vocab_size", None))
            _check_mask(batch, name, name.replace("input_ids", "attention_mask"))
    images, depth = batch.get("pixel_values"), getattr(config, "num_channels", None)
    if images is None:
        return
    size = getattr(config, "image_size", None)
    fits = images.dim() == 4 and (not depth or images.shape[1] == depth)
    if not fits or (isinstance(size, int) and images.shape[2:] != (size, size)):
        wanted = [depth or "channels", size or "height", size or "width"]
        raise MergeError(
            f"The images are {list(images.shape)}, but the model takes [image, {', '.join(map(str, wanted))}]."
        )


def _check_mask(batch: Batch, ids: str, mask: str) -> None:
    """MergeError for a mask that says of other positions whether they count."""
    if mask in batch and batch[mask].shape != batch[ids].shape:
        raise MergeError(
            f"The calibration data holds {mask} as {list(batch[mask].shape)} and {ids} as {list(batch[ids].shape)}, "
            "but there is one entry per token: 1 where it counts, 0 where it is padding."
        )


def _check_ids(ids: Tensor, name: str, words: int | None) -> None:
    """MergeError for what are no token ids, or none of these words."""
    if ids.is_floating_point() or ids.is_complex() or ids.dim() != 2:
        found = f"{name} as {str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}"
        raise MergeError(f"The calibration data holds {found}, but token ids are whole numbers, [sample, token].")
    if ids.numel() and int(ids.min()) < 0:
        raise MergeError(f"The calibration data holds token {int(ids.min())}, but {name} count from 0.")
    if words and ids.numel() and int(ids.max()) >= words:
        raise MergeError(
            f"The calibration data holds token {int(ids.max())}, but the model knows {words} only: it was encoded "
            "with another model's tokenizer."
        )


@contextmanager
def visited(model: nn.Module, sites: Sequence[Site], act: Act, *, drop_first: bool = False) -> Iterator[None]:
    """Within, `act` sees (and may replace) what passes each site, and the mask of the rows that count there."""
    masks, modules = _Masks(model, drop_first), dict(model.named_modules())
    if missing := [site.name for site in sites if site.module not in modules]:
        raise MergeError(f"{type(model).__name__} has no site '{missing[0]}'. Are both models of one architecture?")
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(masks.see, with_kwargs=True).remove)
        for site in sites:
            stack.callback(_hooked(modules[site.module], site, act, masks).remove)
        yield


def _hooked(module: nn.Module, site: Site, act: Act, masks: "_Masks"):
    def before(module: nn.Module, inputs: tuple) -> tuple | None:
        values = _values(site, inputs[0] if inputs else None)
        new = act(site, values, masks.at(site, values))
        return None if new is None else (new, *inputs[1:])

    def after(module: nn.Module, inputs: tuple, output: Any) -> Any:
        values = _values(site, output[0] if isinstance(output, tuple) else getattr(output, _STATES, output))
        new = act(site, values, masks.at(site, values))
        if new is None:
            return None
        if isinstance(output, tuple):
            return (new, *output[1:])
        return replace(output, **{_STATES: new}) if hasattr(output, _STATES) else new

    return module.register_forward_pre_hook(before) if site.side == "in" else module.register_forward_hook(after)


def _values(site: Site, found: Any) -> Tensor:
    """What passes a site, if it is something that can be scaled and shifted; else MergeError."""
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim():
        raise MergeError(f"What passes '{site.name}' is no tensor of activations. Name the output of a module inside.")
    if site.kind == "block" and found.dim() == 4:
        raise MergeError(
            f"What passes '{site.name}' is {list(found.shape)}, and which of these axes are its channels is not known. "
            "Name the convolutions and norms inside it."
        )
    return found


class _Masks:
    """Which rows of an activation are real: known from what the model itself was called with."""

    def __init__(self, model: nn.Module, drop_first: bool):
        config = getattr(model, "config", None)
        self.two = bool(getattr(config, "is_encoder_decoder", False))
        self.drop_first = drop_first and not self.two and _is_causal(model)
        self.own: Tensor | None = None
        self.decoder: Tensor | None = None

    def see(self, model: nn.Module, inputs: tuple, given: dict[str, Any]) -> None:
        """The pre-hook of the whole model: remembers this pass's masks."""
        ids = given.get("input_ids", inputs[0] if inputs else None)
        self.own, self.decoder = _mask(given.get("attention_mask"), ids), None
        if self.two:
            self.decoder = _mask(given.get("decoder_attention_mask"), given.get("decoder_input_ids"))

    def at(self, site: Site, values: Tensor) -> Tensor | None:
        """The mask (batch, position) of an activation, or None if every row of it counts."""
        mask = self.decoder if self.two and not sees_encoder(site.module) else self.own
        if mask is None or site.dim == 1 or values.dim() < 2:
            return None
        if self.drop_first and site.stream:
            mask = mask & (mask.cumsum(1) > 1)
        if values.dim() > 2 and values.shape[:2] == mask.shape:
            return mask
        return mask.flatten() if values.shape[0] == mask.numel() and values.dim() == 2 else None


def _mask(given: Tensor | None, ids: Tensor | None) -> Tensor | None:
    if given is not None and given.dim() == 2:
        return given.bool()
    return torch.ones_like(ids, dtype=torch.bool) if isinstance(ids, Tensor) and ids.dim() == 2 else None


def _is_causal(model: nn.Module) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
