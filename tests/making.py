"""Small models, adapters and layers for the tests."""

import gc
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergelab import Expert, Layer, Recipe, merge, plan
from mergelab import result as finished
from mergelab.maths.spectral import LowRank


def noise(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Normal random numbers that depend on shape and seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer_of(deltas, weights=None, base=None) -> Layer:
    """A layer of given deltas; a matrix is one to decompose."""
    shape = tuple(deltas[0].shape)
    dtype = deltas[0].left.dtype if isinstance(deltas[0], LowRank) else deltas[0].dtype
    base = noise(*shape, seed=99).to(dtype) if base is None else base
    weights = torch.tensor(weights or [1.0] * len(deltas), dtype=torch.float64)
    experts = tuple(f"expert {i}" for i in range(len(deltas)))
    return Layer("layer", base, tuple(deltas), weights, decompose=len(shape) == 2, experts=experts)


def write_model(folder: Path, tensors: dict[str, Tensor], shards: int = 1, **config) -> Path:
    """A model folder with these tensors, spread over so many files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", **config}))
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    placed = {name: files[i % shards] for i, name in enumerate(tensors)}
    if shards == 1:
        placed = dict.fromkeys(tensors, "model.safetensors")
    else:
        index = {"metadata": {"total_size": 0}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in set(placed.values()):
        mine = {name: tensors[name].contiguous() for name in tensors if placed[name] == file}
        save_file(mine, folder / file, metadata={"format": "pt"})
    return folder


def tiny(seed: int = 0, dtype=torch.float32) -> dict[str, Tensor]:
    """The tensors of a model that is small, and has one of each kind."""
    shapes = {"embed.weight": (11, 6), "a.weight": (6, 8), "b.weight": (8, 6), "b.bias": (8,)}
    shapes |= {"conv.weight": (2, 3, 2, 2)}
    tensors = {name: noise(*shape, seed=seed + i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    return tensors | {"scale": torch.tensor(1.5 + seed, dtype=dtype), "steps": torch.arange(3)}


def shifted(tensors: dict[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """An expert: the same tensors, each float moved a little."""
    return {
        name: (tensor.double() + size * noise(*tensor.shape, seed=seed)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def write_adapter(folder: Path, tensors: dict[str, Tensor], **config) -> Path:
    """A LoRA adapter; the tensors' names are those in the file, without peft's prefix."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def recipe_of(base: Path, *experts: Path | str, method: str = "linear", **more) -> Recipe:
    """A recipe for folders."""
    return Recipe(str(base), tuple(Expert(str(expert)) for expert in experts), method, **more)


def merged(recipe: Recipe, out: Path):
    """Merge, and return the report."""
    return finished(merge(plan(recipe), out))


def reused(share: str) -> str:
    """The note of a report that says how many deltas' factors were there already, as in '3 of 8'."""
    return f"The factors of {share} deltas were kept from before: they were not computed again."


def most_held(work: Callable[[], object]) -> int:
    """The most bytes that torch holds at once, of those taken during the work (LAPACK's own come on top).

    The profiler counts a tensor of an earlier profile that is freed in this one, so no garbage is left to be found.
    """
    gc.collect()
    gc.disable()
    try:
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            work()
    finally:
        gc.enable()
    changes = [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))


def put_in_place(path: Path, data: bytes) -> None:
    """Another file moved over one, with its date."""
    about, other = path.stat(), path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)
