"""Recipes and small models on which mergekit's own tensors were recorded, in mergekit_recipes.json beside this file.

`PYTHONPATH=. python tests/record_mergekit_recipes.py`, in an environment with mergekit 0.1.5, records them again: each
recipe as it stands here and as mergelab exports it, which must come to the same.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

RECORDED = Path(__file__).with_name("mergekit_recipes.json")
LAYERS, WIDTH, INNER, VOCABULARY = 4, 8, 12, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
RECIPES = {
    "linear": {
        "merge_method": "linear",
        "models": [{"model": "one", "parameters": {"weight": 0.3}}, {"model": "two", "parameters": {"weight": 0.9}}],
        "dtype": "float32",
    },
    "linear with the base among its models": {
        "merge_method": "linear",
        "base_model": "base",
        "models": [
            {"model": "base", "parameters": {"weight": 0.5}},
            {"model": "one", "parameters": {"weight": 0.3}},
            {"model": "two", "parameters": {"weight": 0.9}},
        ],
        "dtype": "float32",
    },
    "linear with one weight for all and a base": {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": "one"}, {"model": "two"}],
        "parameters": {"weight": 0.7},
        "dtype": "float32",
    },
    "linear with gradients, not normalised": {
        "merge_method": "linear",
        "models": [
            {"model": "one", "parameters": {"weight": [0.1, 0.9, 0.2]}},
            {"model": "two", "parameters": {"weight": [1, 0]}},
        ],
        "parameters": {"normalize": False},
        "dtype": "float32",
    },
    "linear by filters": {
        "merge_method": "linear",
        "models": [
            {
                "model": "one",
                "parameters": {
                    "weight": [
                        {"filter": "self_attn", "value": [0, 1]},
                        {"filter": "mlp", "value": 0.25},
                        {"value": 0.75},
                    ]
                },
            },
            {"model": "two", "parameters": {"weight": [{"filter": "down_proj", "value": [1, 0.5, 1]}, {"value": 0.5}]}},
        ],
        "dtype": "float32",
    },
    "linear from the model's level to the recipe's": {
        "merge_method": "linear",
        "models": [{"model": "one", "parameters": {"weight": [{"filter": "q_proj", "value": 0.9}]}}, {"model": "two"}],
        "parameters": {"weight": [{"filter": "layers.2", "value": 0.1}, {"value": [0.2, 0.8]}]},
        "dtype": "float32",
    },
    "task arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": "base"},
            {"model": "one", "parameters": {"weight": 0.6}},
            {"model": "two", "parameters": {"weight": -0.3}},
        ],
        "parameters": {"lambda": 0.8, "int8_mask": True},
        "dtype": "float32",
    },
    "task arithmetic with a lambda that varies": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": [{"filter": "mlp", "value": 0}, {"value": 1}]}},
            {"model": "two", "parameters": {"weight": 0.5}},
        ],
        "parameters": {
            "lambda": [
                {"filter": "*_norm", "value": 3},
                {"filter": "norm", "value": 0.1},
                {"filter": "*", "value": [1.5, 0.5]},
            ]
        },
        "dtype": "float32",
    },
    "ties": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.5, "density": 0.3}},
            {"model": "two", "parameters": {"weight": 1.0, "density": 0.6}},
        ],
        "parameters": {"normalize": True},
        "dtype": "float32",
    },
    "ties with gradients and filters": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": [0.3, 1], "density": [{"filter": "mlp", "value": [0.2, 0.9]}]}},
            {"model": "two", "parameters": {"weight": [{"filter": "self_attn", "value": 0.2}, {"value": 0.7}]}},
        ],
        "parameters": {
            "density": [{"filter": "embed", "value": 1}, {"value": [0.8, 0.1, 0.5]}],
            "normalize": [{"filter": "mlp", "value": False}, {"value": True}],
            "lambda": 0.9,
        },
        "dtype": "float32",
    },
    "ties from a slice": {
        "merge_method": "ties",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    {"model": "one", "layer_range": [0, 4], "parameters": {"weight": 0.5}},
                    {"model": "two", "layer_range": [0, 4], "parameters": {"density": 0.4}},
                    {"model": "base", "layer_range": [0, 4]},
                ],
                "parameters": {"weight": [{"filter": "mlp", "value": 0.9}]},
            }
        ],
        "parameters": {"weight": 0.3, "density": [0.4, 0.9]},
        "dtype": "float32",
    },
    "breadcrumbs, settings per model": {
        "merge_method": "breadcrumbs_ties",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.5, "density": [0.9, 0.3], "gamma": 0.1}},
            {"model": "two", "parameters": {"weight": 1.0, "density": [{"filter": "mlp", "value": 0.6}]}},
        ],
        "parameters": {"density": 0.8, "gamma": [{"filter": "self_attn", "value": 0.2}]},
        "dtype": "float32",
    },
    "task arithmetic, normalised, with what has no effect on it": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.6, "density": 0.3}},
            {"model": "two", "parameters": {"weight": 0.3}},
        ],
        "parameters": {"normalize": True, "rescale": True, "density": 0.2},
        "dtype": "float32",
    },
    "ties, rescaled, with masks of one byte": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.6, "density": [0.2, 0.9]}},
            {"model": "two", "parameters": {"weight": 0.3, "density": [{"filter": "mlp", "value": 0}]}},
        ],
        "parameters": {
            "normalize": 0,
            "rescale": [{"filter": "self_attn", "value": 1}, {"value": False}],
            "int8_mask": True,
            "density": 0.5,
        },
        "dtype": "float32",
    },
    "breadcrumbs, rescaled and normalised": {
        "merge_method": "breadcrumbs",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.6, "gamma": [{"filter": "mlp", "value": [0.1, 0.3]}]}},
            {"model": "two", "parameters": {"weight": 0.3, "density": [0.7, 0.4]}},
        ],
        "parameters": {"normalize": True, "rescale": True, "density": 0.6, "gamma": 0.05, "lambda": 1.2},
        "dtype": "float32",
    },
    "dare, which drops nothing where nobody says so": {
        "merge_method": "dare_ties",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.6}},
            {"model": "two", "parameters": {"weight": 0.3, "density": [{"filter": "mlp", "value": 0}]}},
        ],
        "parameters": {"normalize": [{"filter": "norm", "value": True}], "rescale": False, "int8_mask": True},
        "dtype": "float32",
    },
    "della, which drops nothing where nobody says so": {
        "merge_method": "della",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.6, "epsilon": 0.1}},
            {"model": "two", "parameters": {"weight": 0.3, "epsilon": [0.05, 0.2], "density": [1, 1.0]}},
        ],
        "parameters": {"lambda": 0.7},
        "dtype": "float32",
    },
    "della, linear, of one expert and none of the other": {
        "merge_method": "della_linear",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.6}},
            {"model": "two", "parameters": {"weight": 0.3, "density": 0}},
        ],
        "parameters": {"normalize": True},
        "dtype": "float32",
    },
    "sce along the layers": {
        "merge_method": "sce",
        "base_model": "base",
        "models": [{"model": "one"}, {"model": "two"}],
        "parameters": {"select_topk": [0.2, 0.9], "int8_mask": True},
        "dtype": "float32",
    },
    "nearswap by filters": {
        "merge_method": "nearswap",
        "base_model": "base",
        "models": [{"model": "one"}, {"model": "base"}],
        "parameters": {"t": [{"filter": "mlp", "value": 0.02}, {"value": 0.05}]},
        "dtype": "float32",
    },
    "model stock, row by row in the attention": {
        "merge_method": "model_stock",
        "base_model": "base",
        "models": [{"model": "one"}, {"model": "two"}],
        "parameters": {"filter_wise": [{"filter": "self_attn", "value": True}, {"value": False}]},
        "dtype": "float32",
    },
    "karcher without a base": {
        "merge_method": "karcher",
        "models": [{"model": "one"}, {"model": "two"}, {"model": "base"}],
        "parameters": {"max_iter": 3, "tol": "1e-6"},
        "dtype": "float32",
    },
    "nuslerp between changes": {
        "merge_method": "nuslerp",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": [0.2, 0.9]}},
            {"model": "two", "parameters": {"weight": 0.5}},
        ],
        "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": [{"filter": "mlp", "value": True}]},
        "dtype": "float32",
    },
    "nuslerp between weights": {
        "merge_method": "nuslerp",
        "models": [
            {"model": "one", "parameters": {"weight": 0.7}},
            {"model": "two", "parameters": {"weight": [{"filter": "mlp", "value": 0.1}, {"value": 0.5}]}},
        ],
        "dtype": "float32",
    },
    "multislerp of changes": {
        "merge_method": "multislerp",
        "base_model": "base",
        "models": [
            {"model": "one", "parameters": {"weight": 0.7}},
            {"model": "two", "parameters": {"weight": 0.5}},
        ],
        "parameters": {"normalize_weights": False},
        "dtype": "float32",
    },
    "multislerp of weights": {
        "merge_method": "multislerp",
        "models": [
            {"model": "one", "parameters": {"weight": 0.7}},
            {"model": "two", "parameters": {"weight": 0.5}},
            {"model": "base", "parameters": {"weight": 0.4}},
        ],
        "dtype": "float32",
    },
    "slerp along the layers": {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [{"sources": [{"model": "base", "layer_range": [0, 4]}, {"model": "one", "layer_range": [0, 4]}]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
        "dtype": "float32",
    },
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a small Llama."""
    square, inner = (WIDTH, WIDTH), (INNER, WIDTH)
    layer = {f"self_attn.{part}_proj.weight": square for part in "qkvo"}
    layer |= {"mlp.gate_proj.weight": inner, "mlp.up_proj.weight": inner, "mlp.down_proj.weight": inner[::-1]}
    layer |= {"input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,)}
    layers = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
    ends = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    return ends | layers | {"lm_head.weight": (VOCABULARY, WIDTH)}


def numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers in -1…1 by a congruential generator, the same wherever this runs."""
    x, found = seed * 7919 + 17, []
    for _ in range(torch.Size(shape).numel()):
        x = (x * 1103515245 + 12345) % 2**31
        found.append(x / 2**30 - 1)
    return torch.tensor(found).view(shape)


def write_models(folder: Path) -> None:
    """The folders base, one and two."""
    base = {name: numbers(i, shape) for i, (name, shape) in enumerate(shapes().items())}
    for seed, model in enumerate(("base", "one", "two")):
        (folder / model).mkdir()
        (folder / model / "config.json").write_text(json.dumps(CONFIG))
        moved = {n: w + 0.1 * min(seed, 1) * numbers(1000 * seed + i, w.shape) for i, (n, w) in enumerate(base.items())}
        save_file(moved, folder / model / "model.safetensors", metadata={"format": "pt"})


def summary(folder: Path) -> dict[str, list[float]]:
    """Three numbers that tell a tensor: its first entry, the sum of its magnitudes, and of its entries by place."""
    tensors = {n: t.double().flatten() for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    places = {name: torch.arange(1, len(t) + 1) for name, t in tensors.items()}
    sums = {name: (t[0], t.abs().sum(), (t * places[name]).sum()) for name, t in tensors.items()}
    return {name: [round(float(value), 6) for value in sums[name]] for name in sorted(sums)}


def by_mergekit(recipe: str, folder: Path, out: str) -> dict[str, list[float]]:
    """What mergekit makes of a recipe's text."""
    (folder / "recipe.yaml").write_text(recipe)
    command = [Path(sys.executable).with_name("mergekit-yaml"), "recipe.yaml", out]
    command += ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return summary(folder / out)


def main() -> None:
    from mergelab import Recipe

    recorded = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder)
        for i, (title, recipe) in enumerate(RECIPES.items()):
            recorded[title] = by_mergekit(yaml.safe_dump(recipe), folder, f"out-{i}")
            exported = by_mergekit(Recipe.from_dict(recipe).to_yaml(), folder, f"again-{i}")
            assert exported == recorded[title], f"{title}: the exported recipe comes to something else"
    lines = [f"{json.dumps(title)}: {json.dumps(tensors)}" for title, tensors in recorded.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
