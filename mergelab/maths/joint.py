"""The directions that several matrices share when they stand side by side, and what each of them has of a direction."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mergelab.maths.gram import CHUNK
from mergelab.maths.spectral import Delta, Factors, LowRank, Wanted, at_least_single, dense, joint_factors, projected

LARGE = 1 << 20  # entries that a product reads at a time


@dataclass(frozen=True)
class Joint:
    """[M_1 … M_T] = U S [V_1ᵀ … V_Tᵀ], its strongest directions. M_i: (rows, columns).

    values: (k,) float64, descending; spectrum: all singular values. U is known or, where all columns are fewer than
    the rows, V: then U = M V / S is never formed.
    """

    matrices: Sequence[Delta]
    found: Factors

    @property
    def spectrum(self) -> Tensor:
        """All singular values, descending."""
        return self.found.values

    @property
    def values(self) -> Tensor:
        """Those of the directions that are kept."""
        return self.spectrum[: self.found.vectors.shape[1]]

    @property
    def road(self) -> str:
        """How they were found."""
        return self.found.road

    def rights(self) -> Tensor:
        """All V_iᵀ, (matrix, k, columns), in the matrices' own precision, but no less than float32."""
        dtype = at_least_single(self.matrices[0].dtype)
        if not self.found.left:
            return torch.stack([part.T.to(dtype) for part in self._parts])
        basis, columns, step = self.found.vectors, self.matrices[0].shape[1], max(1, LARGE // self.matrices[0].shape[0])
        stack = torch.empty(len(self.matrices), basis.shape[1], columns, dtype=dtype, device=basis.device)
        scale = self.values[:, None].to(stack)  # one precision, as mixing two is slow
        for place, matrix in zip(stack, self.matrices):
            for to, some in zip(place.split(step, 1), _by_columns(matrix, step)):
                torch.div(projected(basis, some).to(stack), scale, out=to)
        return stack

    def exact_units(self, which: int, row: Tensor, column: Tensor) -> Tensor:
        """Some entries of V_iᵀ, its rows at length 1, in float64. row, column: the indices of each entry."""
        rows, place = row.unique(return_inverse=True)
        found, squares, start = torch.zeros_like(row, dtype=torch.float64), 0.0, 0
        for some in self._exact(which, rows):
            squares = squares + some.square().sum(1)
            here = ((column >= start) & (column < start + some.shape[1])).nonzero().flatten()
            found[here] = some[place[here], column[here] - start]
            start += some.shape[1]
        return found / squares.sqrt()[place] if len(rows) else found

    def _exact(self, which: int, rows: Tensor) -> Iterator[Tensor]:
        """Some rows of V_iᵀ, each times a number, in float64, some columns at a time."""
        matrix = self.matrices[which]
        if not self.found.left:
            yield self._parts[which][:, rows].T
        else:
            basis = self.found.vectors[:, rows]
            for some in _by_columns(matrix, max(1, CHUNK // matrix.shape[0])):
                yield projected(basis, some if isinstance(some, LowRank) else some.double())

    def combined(self, rows: Tensor) -> Tensor:
        """U times one row for each direction, in the matrices' own precision. rows: (k, columns); (rows, columns)"""
        dtype = at_least_single(self.matrices[0].dtype)
        made = torch.empty(self.matrices[0].shape, dtype=dtype, device=rows.device)
        if self.found.left:
            basis, step = self.found.vectors.to(dtype), max(1, LARGE // len(made))
            for to, some in zip(made.split(step, 1), rows.to(dtype).split(step, 1)):
                torch.mm(basis, some, out=to)
        else:
            scaled = rows.double() / self.values[:, None]
            made.zero_()
            for matrix, part in zip(self.matrices, self._parts):
                made.addmm_(dense(matrix).to(dtype), (part @ scaled).to(dtype))
        return made.to(self.matrices[0].dtype)

    @cached_property
    def _parts(self) -> Sequence[Tensor]:
        """The V_i, (columns, k) float64 each; exactly zero where a column is (eigenvectors: but for rounding)."""
        parts = self.found.vectors.split([matrix.shape[1] for matrix in self.matrices])
        return [part * dense(matrix).any(0)[:, None] for part, matrix in zip(parts, self.matrices)]


def _by_columns(matrix: Delta, step: int) -> Sequence[Delta]:
    """A matrix, so many columns at a time."""
    if isinstance(matrix, LowRank):
        return [LowRank(matrix.left, some) for some in matrix.right.split(step, 1)]
    return matrix.split(step, 1)


def joint_directions(matrices: Sequence[Delta], wanted: Wanted | None = None) -> Joint:
    """The directions that matrices (rows, columns) share when they stand side by side: as many as `wanted` says."""
    return Joint(matrices, joint_factors(matrices, wanted, left=False))
