"""A Patch: one scale and shift per site, in the order of the forward pass. Worn by a model, or kept beside it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mergelab.errors import MergeError, did_you_mean
from mergelab.repair.sites import Site
from mergelab.repair.sites import sites as sites_of
from mergelab.repair.statistics import visited

FORMAT = 1
HEAD = "head:"  # before the names of a head's tensors
_COUNTS = ("dead", "clamped", "skipped")


@dataclass(frozen=True)
class Corrected:
    """One site's y -> scale·y + shift, (channel,) float32, and what there is to say of it.

    before, after: the mean variance over the expert's, as the merged model came to the site, and as it left it.
    dead, clamped, skipped: how many channels were only shifted, held within the clamp, or left alone as not finite.
    """

    site: Site
    scale: Tensor
    shift: Tensor
    before: float = 1.0
    after: float = 1.0
    dead: int = 0
    clamped: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Patch:
    """What one merged model wears for one task. sites: name -> Corrected, in the order of the forward pass.

    target: "task" (the statistics of that task's expert: TACT) or "mean" (of all experts: REPAIR).
    tokens: rows that counted at the first site. merged: the sha256 of the weights that it was fitted on, if known.
    """

    task: str
    sites: Mapping[str, Corrected]
    mode: str = "affine"
    target: str = "task"
    samples: int = 0
    tokens: int = 0
    clamp: float = 10.0
    merged: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def counts(self) -> dict[str, int]:
        """How many channels were dead, clamped and skipped, in all."""
        return {what: sum(getattr(one, what) for one in self.sites.values()) for what in _COUNTS}

    @property
    def channels(self) -> int:
        """How many channels it holds a scale and a shift for."""
        return sum(len(one.scale) for one in self.sites.values())

    def only(self, names) -> "Patch":
        """The same patch at some of its sites."""
        return replace(self, sites={name: one for name, one in self.sites.items() if name in names})

    def save(self, path: str | Path, head: Mapping[str, Tensor] | None = None) -> None:
        """Write it as one safetensors file: `<site>.scale` and `<site>.shift`, and all else as metadata.

        head: a classifier's own head for the task, as `head_of` gives it; `saved_head` reads it.
        """
        tensors = {f"{HEAD}{name}": tensor.contiguous() for name, tensor in (head or {}).items()}
        for name, one in self.sites.items():
            tensors |= {f"{name}.scale": one.scale.contiguous(), f"{name}.shift": one.shift.contiguous()}
        about = {key: getattr(self, key) for key in ("task", "mode", "target", "samples", "tokens", "clamp", "merged")}
        order = [_facts(one) for one in self.sites.values()]
        text = json.dumps({"format": FORMAT, **about, "notes": self.notes, "order": order})
        save_file(tensors, path, metadata={"format": "pt", "mergelab": text})

    @classmethod
    def load(cls, path: str | Path, merged: str = "") -> "Patch":
        """The patch that `save` wrote. merged: the sha256 that its weights must have, else MergeError."""
        about, tensors = _read(Path(path))
        order = about.pop("order")
        if merged and about["merged"] and merged != about["merged"]:
            raise MergeError(
                f"'{Path(path).name}' was fitted on weights with sha256 {about['merged'][:12]}…, not on these "
                f"({merged[:12]}…). Fit it anew with `mergelab repair`."
            )
        about["notes"] = tuple(about["notes"])
        return cls(sites=dict(_corrected(facts, tensors) for facts in order), **about)


def saved_head(path: str | Path) -> dict[str, Tensor]:
    """The head that `save` wrote beside a patch; empty if there is none."""
    tensors = _read(Path(path))[1]
    return {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}


def _facts(one: Corrected) -> dict[str, Any]:
    keys = ("before", "after", *_COUNTS)
    site = {key: getattr(one.site, key) for key in ("module", "side", "kind", "dim", "stream")}
    return site | {key: getattr(one, key) for key in keys}


def _corrected(facts: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[str, Corrected]:
    site = Site(*(facts.pop(key) for key in ("module", "side", "kind", "dim", "stream")))
    return site.name, Corrected(site, tensors[f"{site.name}.scale"], tensors[f"{site.name}.shift"], **facts)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("mergelab", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise MergeError(f"'{path}' is no repair that can be read: {error}.") from None
    if about.pop("format", None) != FORMAT:
        raise MergeError(
            f"'{path.name}' is no repair of format {FORMAT}. `mergelab repair --sidecar` writes such files."
        )
    return about, tensors


@contextmanager
def applied(model: nn.Module, patch: Patch) -> Iterator[nn.Module]:
    """The model with the patch on: within, every forward pass is corrected, generation with a cache included.

    The weights stay as they are, and patches can be swapped at will. MergeError if a site is not in this model.
    """
    _check_sites(model, patch)
    moved: dict[tuple, tuple[Tensor, Tensor]] = {}

    def correct(site: Site, values: Tensor, mask: Tensor | None) -> Tensor:
        key = site.name, values.device, values.dtype
        if key not in moved:
            one = patch.sites[site.name]
            moved[key] = tuple(shaped(t, site, values.dim()).to(values) for t in (one.scale, one.shift))
        scale, shift = moved[key]
        return values * scale + shift

    with visited(model, [one.site for one in patch.sites.values()], correct):
        yield model


def shaped(vector: Tensor, site: Site, dims: int) -> Tensor:
    """A vector (channel,) so that it meets the channels of an activation with so many axes."""
    return vector if site.dim == -1 else vector.reshape(-1, *[1] * (dims - 2))


def _check_sites(model: nn.Module, patch: Patch) -> None:
    modules = dict(model.named_modules())
    for name, one in patch.sites.items():
        if one.site.module not in modules:
            raise MergeError(
                f"The repair of '{patch.task}' acts on '{name}', which this model does not have. "
                f"{did_you_mean(one.site.module, (site.module for site in sites_of(model)))}"
            )
