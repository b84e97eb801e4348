"""Two merges of one base, tensor by tensor: how far apart their changes are, and the spectra of both.

What is compared is what lies on disk: each change is the written weights minus the base's, so that both carry the
rounding of the number format that they were written in.
"""

import re
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.files.checkpoint import Checkpoint
from mergelab.maths.inner import inner_products, squared_norm
from mergelab.maths.spectral import factors, no_vectors
from mergelab.step import Step


@dataclass(frozen=True)
class Difference:
    """One tensor of both. distance: ‖Δ_A − Δ_B‖ relative to the mean of ‖Δ_A‖ and ‖Δ_B‖; cosine: of Δ_A and Δ_B."""

    name: str
    shape: tuple[int, ...]
    distance: float
    cosine: float
    sizes: tuple[float, float]  # ‖Δ_A‖, ‖Δ_B‖

    @property
    def place(self) -> tuple[str, str]:
        """What kind of tensor it is, and in which layer: 'model.layers.*.mlp.up_proj.weight' and '3'."""
        found = re.search(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", self.name)
        return (self.name[: found.start()] + "*" + self.name[found.end() :], found[0]) if found else (self.name, "")


@dataclass(frozen=True)
class Comparison:
    """All tensors of two merges. spectra: name -> the singular values of both changes; whole: over all tensors."""

    layers: tuple[Difference, ...]
    whole: Difference
    spectra: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: a row per tensor, the whole model last."""
        rows = [
            [d.name, "×".join(map(str, d.shape)), d.distance, d.cosine, *d.sizes] for d in (*self.layers, self.whole)
        ]
        return ["tensor", "shape", "relative distance", "cosine", "size of A", "size of B"], rows

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Comparison":
        """What `to_dict` wrote."""
        spectra = {name: tuple(map(tuple, pair)) for name, pair in data["spectra"].items()}
        return cls(tuple(map(_from_dict, data["layers"])), _from_dict(data["whole"]), spectra)


def compared(
    base: Checkpoint, one: Checkpoint, other: Checkpoint, names: Sequence[str], decomposed: Collection[str] = ()
) -> Generator[Step, None, Comparison]:
    """Compare two merges of a base. names: the tensors, in order; decomposed: those whose spectra are wanted.

    MergeError if they do not have the same tensors in the same shapes.
    """
    for name in names:
        if any(name not in model for model in (base, one, other)):
            raise MergeError(f"One of the two has no tensor '{name}'. Only merges of one base can be compared.")
    layers, spectra, sums = [], {}, torch.zeros(4, dtype=torch.float64)  # ‖Δ_A‖², ‖Δ_B‖², Δ_A·Δ_B, ‖Δ_A - Δ_B‖²
    for done, name in enumerate(names, start=1):
        mine, theirs = _change(base, one, name), _change(base, other, name)
        (one_square, both), (_, other_square) = inner_products([mine, theirs]).tolist()
        products = torch.tensor([one_square, other_square, both, squared_norm(mine - theirs)], dtype=torch.float64)
        sums += products
        layers.append(_difference(name, tuple(mine.shape), products))
        if name in decomposed:
            spectra[name] = tuple(tuple(factors(delta, no_vectors).values.tolist()) for delta in (mine, theirs))
        yield Step(done, len(names), name)
    return Comparison(tuple(layers), _difference("all tensors", (), sums), spectra)


def _from_dict(data: Mapping[str, Any]) -> Difference:
    return Difference(**{**data, "shape": tuple(data["shape"]), "sizes": tuple(data["sizes"])})


def _change(base: Checkpoint, merged: Checkpoint, name: str) -> Tensor:
    own, start = merged[name], base[name]
    if own.shape != start.shape:
        found = f"'{name}' is {list(own.shape)} in one of them and {list(start.shape)} in the base"
        raise MergeError(f"{found}. Only merges of one base can be compared.")
    return own.float() - start.float()


def _difference(name: str, shape: tuple[int, ...], products: Tensor) -> Difference:
    """From ‖Δ_A‖², ‖Δ_B‖², Δ_A·Δ_B and ‖Δ_A - Δ_B‖²; two changes of nothing are equal."""
    mine, theirs, both, between = products.tolist()
    sizes = mine**0.5, theirs**0.5
    apart, mean = between**0.5, sum(sizes) / 2
    scale = sizes[0] * sizes[1]
    cosine = both / scale if scale else float(mine == theirs)
    return Difference(name, shape, apart / mean if mean else 0.0, max(-1.0, min(1.0, cosine)), sizes)
