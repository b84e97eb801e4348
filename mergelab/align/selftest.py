"""The test before anything is matched: a random element of every group must leave the model's outputs as they are."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mergelab.align.pair import Tensors, shapes_of, wide
from mergelab.errors import MergeError, broken
from mergelab.files.checkpoint import Checkpoint
from mergelab.maths.inner import finite
from mergelab.model import built, outputs, probe
from mergelab.symmetry import symmetry_of

BOUND = (
    1e-3  # ‖change of the outputs‖ / ‖outputs‖ in float32; a wrong symmetry changes them by about as much as they are
)


def selftest(
    tensors: Tensors,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    rotations: bool = True,
    build: Callable[[Tensors], nn.Module] | None = None,
    batch: Mapping[str, Tensor] | None = None,
) -> float:
    """How much a random element of every group changes a model's outputs, relative to them. MergeError above 1e-3.

    tensors: a Checkpoint, or name -> tensor with its `config`. build, batch: for what transformers does not know, a
    function that makes a module of tensors, and what to run it on; by default random tokens or pixels.
    """
    config = tensors.config if config is None else config  # a Checkpoint has one
    symmetry = symmetry_of(shapes_of(tensors), config)
    for name, tensor in tensors.items():
        if not finite(tensor):
            raise broken(name, f"'{tensors.source}'" if isinstance(tensors, Checkpoint) else "the model")
    elements = symmetry.random(seed, rotations)
    tensors = {name: wide(tensor) for name, tensor in tensors.items()}  # stored in half precision, rotations round
    moved = {name: symmetry.moved(name, tensor, elements) for name, tensor in tensors.items()}
    batch = probe(config) if batch is None else batch
    before, after = (outputs(build(t) if build else built(config, t), batch) for t in (tensors, moved))
    error = float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before).clamp(min=1e-30))
    if not error <= BOUND:  # NaN too
        raise MergeError(
            f"This '{symmetry.family}' is not what its symmetries were written for: a change that should leave its "
            f"outputs as they are changes them by {error:.1e}. Nothing was aligned. Use 'align: none'."
        )
    return error
