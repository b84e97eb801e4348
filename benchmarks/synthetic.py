"""Models of real models' shapes with made-up weights, for measuring time and memory: no download, the same each time.

A delta is what fine-tuning leaves: directions whose strength falls as k^-0.6 over an eighth of the rank, and noise of
full rank; or a LoRA of rank 16 whose singular values spread over one and a half decades.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    layers: int
    width: int
    inner: int
    heads: int  # the width of keys and values
    words: int

    def config(self) -> dict:
        """config.json, as far as others need it to know the model."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "tie_word_embeddings": True,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_attention_heads": self.width // 64,
            "num_key_value_heads": self.heads // 64,
            "vocab_size": self.words,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor; the head is tied to the embeddings."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.words, self.width)}
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            for name, rows in (("q", self.width), ("k", self.heads), ("v", self.heads), ("o", self.width)):
                found[f"{layer}.self_attn.{name}_proj.weight"] = rows, self.width
            found |= {f"{layer}.mlp.{name}_proj.weight": (self.inner, self.width) for name in ("gate", "up")}
            found[f"{layer}.mlp.down_proj.weight"] = self.width, self.inner
            found |= {f"{layer}.{name}_layernorm.weight": (self.width,) for name in ("input", "post_attention")}
        return found | {"model.norm.weight": (self.width,)}


SHAPES = {
    "small": Shape(3, 192, 512, 64, 4096),
    "135M": Shape(30, 576, 1536, 192, 49152),  # SmolLM2-135M
    "360M, 2 layers": Shape(2, 960, 2560, 320, 4096),  # SmolLM2-360M's width
    "1B, 1 layer": Shape(1, 2048, 8192, 512, 4096),  # Llama-3.2-1B's width
}


def written(shape: Shape, folder: Path, dtype: torch.dtype, experts: int, kind: str) -> list[Path]:
    """The folders of a base and of so many experts ('full' or 'lora'), made unless they are there."""
    folders = [folder / "base", *(folder / f"{kind}-{i}" for i in range(1, experts + 1))]
    base = {name: _noise(seed, *size) * 0.02 for seed, (name, size) in enumerate(shape.tensors().items())}
    for number, place in enumerate(folders):
        if not place.is_dir():
            place.mkdir(parents=True)
            if kind == "lora" and number:
                _write_lora(place, base, number, dtype)
                continue
            config = shape.config() | {"torch_dtype": str(dtype).removeprefix("torch.")}
            (place / "config.json").write_text(json.dumps(config))
            _write_full(place, base, number, dtype)
    return folders


def _write_full(place: Path, base: dict[str, Tensor], number: int, dtype: torch.dtype) -> None:
    moved = {
        name: weight + _delta(weight, 1000 * number + i) * (number > 0) for i, (name, weight) in enumerate(base.items())
    }
    save_file({n: t.to(dtype) for n, t in moved.items()}, place / "model.safetensors", metadata={"format": "pt"})


def _write_lora(place: Path, base: dict[str, Tensor], number: int, dtype: torch.dtype, rank: int = 16) -> None:
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    strength = torch.logspace(0, -1.5, rank) * 0.02
    pairs = {}
    for i, (name, weight) in enumerate(base.items()):
        if "_proj" in name:
            key, seed = f"base_model.model.{name.removesuffix('.weight')}", 1000 * number + 2 * i
            pairs[f"{key}.lora_B.weight"] = _noise(seed, len(weight), rank) * strength
            pairs[f"{key}.lora_A.weight"] = _noise(seed + 1, rank, weight.shape[1]) * weight.shape[1] ** -0.5
    save_file({n: t.to(dtype) for n, t in pairs.items()}, place / "adapter_model.safetensors")


def _delta(weight: Tensor, seed: int) -> Tensor:
    noise = _noise(seed, *weight.shape) * 4e-4
    if weight.dim() < 2 or len(weight) > 16 * weight.shape[1]:
        return noise
    rank = max(1, min(weight.shape) // 8)
    strength = torch.arange(1, rank + 1) ** -0.6 * 0.04
    left = _noise(seed + 1, len(weight), rank) * len(weight) ** -0.5
    return noise + (left * strength) @ _noise(seed + 2, rank, weight.shape[1])


def _noise(seed: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))
