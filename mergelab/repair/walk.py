"""The walk through a merged model that hands the moments of each site over as soon as it is reached.

This room knows the order of a forward pass, and how to stop and resume one. It does not know what a correction is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.maths.moments import Moments, moments
from mergelab.repair.patch import Corrected, shaped
from mergelab.repair.sites import Site, blocks
from mergelab.repair.statistics import Batch, not_finite, run, visited


@dataclass
class Fitting:
    """The sites to fit, and those that are done. corrected: what makes a correction of a site's moments."""

    sites: Sequence[Site]
    corrected: Callable[[Site, Moments], Corrected]
    drop_first: bool
    done: dict[str, Corrected] = field(default_factory=dict)
    rows: int = 0

    def take(self, site: Site, found: Moments) -> None:
        """Fit a site on what came to it; MergeError if that is not finite."""
        if not found.finite:
            raise MergeError(not_finite(site))
        self.rows = self.rows or found.count
        self.done[site.name] = self.corrected(site, found)

    def correct(self, site: Site, values: Tensor) -> Tensor:
        """What passes a site that is done, corrected."""
        one = self.done[site.name]
        scale, shift = (shaped(t, site, values.dim()).to(values) for t in (one.scale, one.shift))
        return values * scale + shift


class _Seen(Exception):
    """All that was asked of this pass has been seen; what lies behind is not run."""


def walked(model: nn.Module, batch: Batch, fitting: Fitting) -> None:
    """Fit all sites in one pass of one batch, which stops behind the last of them."""

    def act(site: Site, values: Tensor, mask: Tensor | None) -> Tensor:
        if site.name not in fitting.done:  # a module that is called again keeps its first correction
            fitting.take(site, moments(values, site.dim, mask))
        if len(fitting.done) == len(fitting.sites):
            raise _Seen
        return fitting.correct(site, values)

    with visited(model, fitting.sites, act, drop_first=fitting.drop_first):
        _run_until_seen(model, batch)


def _run_until_seen(model: nn.Module, batch: Batch) -> None:
    with suppress(_Seen):
        run(model, batch)


def walked_in_parts(model: nn.Module, batches: Sequence[Batch], fitting: Fitting) -> None:
    """All batches up to the next site, for each site in turn; layers that are finished answer from memory."""
    memory = _Memory(model)
    while len(fitting.done) < len(fitting.sites):
        parts: list[tuple[Site, Moments]] = []

        def act(site: Site, values: Tensor, mask: Tensor | None) -> Tensor:
            if site.name in fitting.done:
                return fitting.correct(site, values)
            parts.append((site, moments(values, site.dim, mask)))  # noqa: B023  this turn's list
            raise _Seen

        with visited(model, fitting.sites, act, drop_first=fitting.drop_first):
            for number, batch in enumerate(batches):
                with memory.answering(number):
                    _run_until_seen(model, batch)
        if not parts:
            return
        found = parts[0][1]
        for _, part in parts[1:]:
            found = found.joined(part)
        fitting.take(parts[0][0], found)


class _Memory:
    """The output of the last layer that each batch has run through, as it was before any correction of its own.

    A pass stops at the first site that is not fitted: a layer that ran to its end will never give anything else. So it
    and those before it need not run again.
    """

    def __init__(self, model: nn.Module):
        self.lists = blocks(model)
        self.kept: dict[tuple[str, int], tuple[int, Any]] = {}

    @contextmanager
    def answering(self, part: int) -> Iterator[None]:
        with ExitStack() as stack:
            for name, layers in self.lists.items():
                last, output = self.kept.get((name, part), (-1, None))
                for i, layer in enumerate(layers):
                    forward = _always(output) if i <= last else self._kept(layer.forward, (name, part), i)
                    stack.enter_context(_with_forward(layer, forward))
            yield

    def _kept(self, forward: Callable, key: tuple[str, int], i: int) -> Callable:
        def kept(*inputs: Any, **given: Any) -> Any:
            output = forward(*inputs, **given)
            self.kept[key] = i, output
            return output

        return kept


def _always(output: Any) -> Callable:
    return lambda *inputs, **given: output


@contextmanager
def _with_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    own = module.__dict__.get("forward")  # accelerate has put one there
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
