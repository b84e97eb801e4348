"""The merge methods as the papers' own code goes about them, as one whole job: what mergelab is measured against.

Every state dict is in memory in float32, a delta is a dense matrix, its factorisation the whole `torch.linalg.svd`.
`python benchmarks/textbook_job.py METHOD OUT BASE EXPERT…`; threads as OMP_NUM_THREADS says. Written anew from the
papers' formulas; no code of theirs is in it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def star(deltas: list[Tensor], share: float = 0.4) -> Tensor:
    kept = []
    for delta in deltas:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        rank = int((s.cumsum(0) < share * s.sum()).sum()) + 1
        kept.append((u[:, :rank] * (s[:rank] * s.sum() / s[:rank].sum())) @ vh[:rank])
    return torch.stack(kept).mean(0)


def drm_h(deltas: list[Tensor], drop: float = 0.8, floor: float = 0.01) -> Tensor:
    u, s, vh = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    rank = int((s > floor * s[0]).sum())
    u, s, blocks = u[:, :rank], s[:rank], vh[:rank].chunk(len(deltas), 1)
    lengths = torch.stack([block.norm(dim=1) for block in blocks])
    unit = torch.stack([block / length[:, None] for block, length in zip(blocks, lengths)])
    least = unit.abs().flatten().sort(descending=True).values[round((1 - drop) * unit.numel()) - 1]
    scaled = torch.where(unit.abs() >= least, unit, 0) * (s * lengths)[:, :, None]
    return u @ vote(scaled)


def drm_v(deltas: list[Tensor]) -> Tensor:
    return drm_h([delta.T for delta in deltas]).T


def vote(stack: Tensor) -> Tensor:
    sign = stack.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    chosen = torch.where(stack.sign() == sign, stack, 0)
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)


def ties(deltas: list[Tensor], density: float = 0.2) -> Tensor:
    kept = []
    for delta in deltas:
        size = delta.abs().flatten()
        least = size.sort(descending=True).values[max(1, int(density * len(size))) - 1]
        kept.append(torch.where(delta.abs() >= least, delta, 0))
    stack = torch.stack(kept)
    chosen = torch.where(stack.sign() == torch.where(stack.sum(0) >= 0, 1, -1), stack, 0)
    return chosen.sum(0) / (chosen != 0).sum(0).clamp(min=1)


def mean(deltas: list[Tensor]) -> Tensor:
    return torch.stack(deltas).mean(0)


MATRIX = {"star": star, "drm_h": drm_h, "drm_v": drm_v, "ties": ties, "linear": mean}
OTHER = {"star": mean, "drm_h": lambda d: vote(torch.stack(d)), "ties": ties, "linear": mean}


def weights(folder: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """An expert's whole weights, in float32; a LoRA is multiplied out into the base."""
    if not (folder / "adapter_config.json").is_file():
        return {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "adapter_config.json").read_text())
    pairs, found = load_file(folder / "adapter_model.safetensors"), dict(base)
    for key, a in pairs.items():
        if ".lora_A" in key:
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            b = pairs[key.replace("lora_A", "lora_B")].float()
            found[name] = base[name] + config["lora_alpha"] / config["r"] * b @ a.float()
    return found


def main(method: str, out: str, base_folder: str, *folders: str) -> None:
    stored = load_file(Path(base_folder) / "model.safetensors")
    base = {name: tensor.float() for name, tensor in stored.items()}
    experts = [weights(Path(folder), base) for folder in folders]
    merged = {}
    for name, weight in base.items():
        deltas = [expert[name] - weight for expert in experts]
        road = MATRIX[method] if "_proj" in name else OTHER.get(method, OTHER["drm_h"])
        merged[name] = (weight + road(deltas)).to(stored[name].dtype).contiguous()
    Path(out).mkdir(parents=True)
    save_file(merged, Path(out) / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
