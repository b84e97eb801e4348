"""What there is to say of one merged tensor: how far each expert moved, how far the merge did, and its spectra.

This room knows tensors and reports, and no file. A tensor that is merged in parts is measured in parts.
"""

from math import isfinite

import torch
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.maths.inner import inner_products, is_unmoved, mean_cosine, squared_norm
from mergelab.maths.spectral import factors, no_vectors
from mergelab.maths.tall import Tall
from mergelab.method import Layer, Merged, shares
from mergelab.report import LayerReport


class Measures:
    """Sums over the parts of one tensor, and the LayerReport that they make.

    experts: their names. curves: whether spectra are wanted, too.
    """

    def __init__(self, experts: tuple[str, ...], curves: bool = False):
        self.experts, self.curves = experts, curves
        self.deltas: list[Tensor] = []  # what was merged, where its spectrum is wanted
        self.base = self.merged = 0.0  # squared norms
        self.products = torch.zeros(len(experts), len(experts), dtype=torch.float64)
        self.counts: dict[str, Tensor] = {}

    def add(self, layer: Layer, merged: Merged) -> None:
        """Take in a part."""
        self.base += squared_norm(layer.base)
        self.merged += squared_norm(merged.delta)
        self.products += inner_products(layer.deltas)
        for name, count in merged.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count.cpu()
        if self.curves and layer.decompose:
            self.deltas.append(merged.delta)

    def report(self, layer: Layer, merged: Merged, shape: tuple[int, ...]) -> LayerReport:
        """What there is to say. layer, merged: the last part, or the whole. MergeError if float64 cannot say it."""
        size = self.base**0.5 or 1.0
        norms = self.products.diagonal().sqrt().tolist()
        if not all(map(isfinite, (size, self.merged, *norms))):
            raise MergeError(f"'{layer.name}' holds numbers too large for their squares to be summed: scale it down.")
        facts = {
            **merged.facts,
            **shares(self.counts),
            "change": tuple(norm / size for norm in norms),
            "merged change": self.merged**0.5 / size,
            "cosine of deltas": mean_cosine(self.products),
        }
        equal = tuple(name for name, norm in zip(self.experts, norms) if norm == 0)
        found = self._curves(layer, merged, shape) if self.deltas else {}
        roads = tuple(dict.fromkeys(merged.roads))
        return LayerReport(layer.name, shape, layer.decompose, facts, found, equal, roads)

    def _curves(self, layer: Layer, merged: Merged, shape: tuple[int, ...]) -> dict[str, tuple]:
        curves: dict[str, tuple] = {"singular_values": tuple(_rounded(f.values) for f in layer.factors(no_vectors))}
        still = all(map(is_unmoved, self.deltas))
        whole = self.deltas[0] if len(self.deltas) == 1 else Tall(shape, self.deltas)
        curves["merged_singular_values"] = () if still else _rounded(factors(whole, no_vectors).values)
        rows = {name: curve if curve.dim() == 1 else [*curve] for name, curve in merged.curves.items()}
        return curves | {n: _rounded(c) if isinstance(c, Tensor) else tuple(map(_rounded, c)) for n, c in rows.items()}


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())
