"""A matrix of many rows that is never held whole: its rows are read some at a time, whenever they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


class Pieces(Sequence[Tensor]):
    """So many tensors, each made anew when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Tensor]):
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(index)


@dataclass(frozen=True)
class Tall:
    """A matrix in pieces that lie one above the other. shape: (out, in); pieces: (some rows, in) each."""

    shape: tuple[int, int]
    pieces: Sequence[Tensor]

    @cached_property
    def dtype(self) -> torch.dtype:
        """That of every piece."""
        return self.pieces[0].dtype

    @cached_property
    def device(self) -> torch.device:
        """That of every piece."""
        return self.pieces[0].device

    @property
    def turned(self) -> Sequence[Tensor]:
        """The pieces of the transpose, which lie side by side. (in, some rows) each."""
        return Pieces(len(self.pieces), lambda index: self.pieces[index].T)
