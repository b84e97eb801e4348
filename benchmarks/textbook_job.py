"""A whole merge as the papers' own code goes about it: every state dict in memory, in float32, as dense matrices.

`python benchmarks/textbook_job.py METHOD OUT BASE EXPERT…`; threads as OMP_NUM_THREADS says. STAR's code walks model by
model: it holds the task vectors of all experts, then the truncated ones beside them, then their mean, then the result
beside the base. DRM's holds all models and walks tensor by tensor, and so do TIES and the mean here.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from textbook import METHODS, mean, ties, truncated, vote
from torch import Tensor

Weights = dict[str, Tensor]

OTHER = {"ties": ties, "linear": mean}  # what is no linear layer's matrix: DRM votes on it


def by_models(base: Weights, experts: list[Weights]) -> Weights:
    """STAR: base plus the mean of the truncated task vectors. experts: task vectors."""
    kept = [{name: truncated(tau) if is_linear(name) else tau for name, tau in expert.items()} for expert in experts]
    merged = {name: mean([expert[name] for expert in kept]) for name in kept[0]}
    return {name: weight + merged[name] if name in merged else weight.clone() for name, weight in base.items()}


def by_tensors(method: str, base: Weights, experts: list[Weights]) -> Weights:
    """Any other method. experts: their whole weights."""
    result = {}
    for name, weight in base.items():
        deltas = [expert[name] - weight for expert in experts]
        road = METHODS[method] if is_linear(name) else OTHER.get(method, lambda deltas: vote(torch.stack(deltas)))
        result[name] = weight + road(deltas)
    return result


def is_linear(name: str) -> bool:
    return "_proj" in name


def loaded(folder: Path) -> Weights:
    """The weights of a full model, in float32."""
    return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}


def task_vector(folder: Path, base: Weights) -> Weights:
    """What an expert adds to the base; of a LoRA, the products of the matrices that it has."""
    if not (folder / "adapter_config.json").is_file():
        return {name: weight - base[name] for name, weight in loaded(folder).items()}
    config = json.loads((folder / "adapter_config.json").read_text())
    pairs, scale = load_file(folder / "adapter_model.safetensors"), config["lora_alpha"] / config["r"]
    return {
        key.removeprefix("base_model.model.").replace(".lora_A", ""): scale
        * (pairs[key.replace("lora_A", "lora_B")].float() @ a.float())
        for key, a in pairs.items()
        if ".lora_A" in key
    }


def main(method: str, out: str, base_folder: str, *folders: str) -> None:
    stored = load_file(Path(base_folder) / "model.safetensors")
    dtypes = {name: tensor.dtype for name, tensor in stored.items()}
    base = {name: tensor.float() for name, tensor in stored.items()}
    del stored
    if method == "star":
        result = by_models(base, [task_vector(Path(folder), base) for folder in folders])
    else:
        result = by_tensors(method, base, [loaded(Path(folder)) for folder in folders])
    result = {name: weight.to(dtypes[name]).contiguous() for name, weight in result.items()}
    Path(out).mkdir(parents=True)
    save_file(result, Path(out) / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
