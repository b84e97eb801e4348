"""A checkpoint on disk seen in another one's coordinates. The matching is done when the first tensor is asked for."""

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from mergelab.align.alignment import BEST, Alignment, Batches, alignment
from mergelab.align.compare import compared
from mergelab.align.pair import pair_of
from mergelab.align.selftest import selftest
from mergelab.errors import MergeError
from mergelab.files.checkpoint import Checkpoint, Entry
from mergelab.files.stamp import Stamp
from mergelab.files.vocabulary import vocabulary_of

NEED_DATA = ("activations", BEST)


class InCoordinates(Mapping[str, Tensor]):
    """An expert's checkpoint in the coordinates of a reference, tensor by tensor; headers are the expert's own.

    Opening checks family, vocabulary and shapes. The first tensor runs the self-test and the matching. data: makes the
    calibration batches that `activations` and `best` need. MergeError says what does not fit.
    """

    def __init__(
        self,
        expert: Checkpoint,
        reference: Checkpoint,
        how: str,
        *,
        seed: int = 0,
        rotations: bool = True,
        data: Callable[[], Batches] = list,
    ):
        self.expert, self.reference, self.how, self.seed, self.rotations = expert, reference, how, seed, rotations
        self._data, self._lock = data, threading.Lock()
        check_kin(expert, reference)

    @cached_property
    def _found(self) -> tuple[float | None, Alignment]:
        config = self.reference.config
        runs = bool(config.get("architectures"))  # a plain chain of layers cannot be run by its configuration
        error = selftest(self.reference, config, rotations=self.rotations) if runs else None
        data = self._data() if self.how in NEED_DATA else []
        pair, options = (self.reference, self.expert, config), {"seed": self.seed, "rotations": self.rotations}
        if self.how == BEST:
            return error, compared(*pair, data, **options)[0].alignment
        return error, alignment(*pair, self.how, data, **options)

    @property
    def alignment(self) -> Alignment:
        """The alignment; found on first use."""
        with self._lock:
            return self._found[1]

    @property
    def selftest(self) -> float | None:
        """By how much a random element of the symmetry changes the reference's outputs; None if it cannot be run."""
        with self._lock:
            return self._found[0]

    @property
    def folder(self) -> Path:
        """Where the expert lies."""
        return self.expert.folder

    @property
    def source(self) -> str:
        """What the expert is called."""
        return self.expert.source

    @property
    def stamps(self) -> Mapping[Path, Stamp]:
        """The expert's files, as they were when they were opened."""
        return self.expert.stamps

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor's file, dtype and shape, as in the expert's own headers."""
        return self.expert.entries

    def __getitem__(self, name: str) -> Tensor:
        return self.alignment.applied(name, self.expert[name])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some rows of it (along its first dimension)."""
        if rows is None or self.mixes_rows(name):
            return self[name] if rows is None else self[name][rows]
        return self.alignment.applied(name, self.expert.read(name, rows))

    def mixes_rows(self, name: str) -> bool:
        """Whether rows of this tensor change places, so that a few of them cannot be had without the others."""
        return any(slot.axis == 0 for _, slot in self.alignment.symmetry.slots.get(name, ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.expert)

    def __len__(self) -> int:
        return len(self.expert)

    def facts(self) -> dict:
        """What a report keeps of the alignment."""
        return {**self.alignment.facts(), "self-test": self.selftest}


def check_kin(expert: Checkpoint, reference: Checkpoint) -> None:
    """MergeError unless two checkpoints are of one family with known symmetries, one vocabulary and one shape."""
    kinds = [str(checkpoint.config.get("model_type")) for checkpoint in (expert, reference)]
    if kinds[0] != kinds[1]:
        found = f"'{expert.source}' is a '{kinds[0]}', and '{reference.source}' a '{kinds[1]}'"
        raise MergeError(f"{found}: neurons of different architectures cannot be paired. Align models of one family.")
    pair_of(reference, expert, reference.config)
    mine, theirs = (vocabulary_of(checkpoint.folder) for checkpoint in (expert, reference))
    if mine is not None and theirs is not None and mine != theirs:
        token = min(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
        found = f"The token {token!r} is number {mine.get(token)} in '{expert.source}', and {theirs.get(token)}"
        raise MergeError(f"{found} in '{reference.source}': models of different vocabularies cannot be aligned.")
