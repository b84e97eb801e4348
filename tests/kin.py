"""A small random model of every family whose symmetries are known: its configuration, and its tensors as on disk."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

TEXT = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}
PIXELS = {"image_size": 8, "patch_size": 4}
T5 = {
    "vocab_size": 32,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
CONV = {"num_channels": 1, "embedding_size": 8, "depths": [2, 1]}

FAMILIES = {
    "llama": ("LlamaForCausalLM", {**TEXT, **GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {**TEXT, **GROUPED}),
    "qwen2": ("Qwen2ForCausalLM", {**TEXT, **GROUPED}),
    "qwen3": ("Qwen3ForCausalLM", {**TEXT, **GROUPED, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", {**TEXT, **GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", {**TEXT, **GROUPED, "head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", {**TEXT, **GROUPED}),
    "gpt2": ("GPT2LMHeadModel", {**TEXT, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**TEXT, **SIZES, "hidden_size": 32, "rotary_pct": 0.5}),
    "bert": ("BertForMaskedLM", {**TEXT, **SIZES, "max_position_embeddings": 20}),
    "bert with a pooler": ("BertForSequenceClassification", {**TEXT, **SIZES, "max_position_embeddings": 20}),
    "bert without one": ("BertForTokenClassification", {**TEXT, **SIZES, "max_position_embeddings": 20}),
    "bare bert": ("BertModel", {**TEXT, **SIZES, "max_position_embeddings": 20}),
    "roberta": ("RobertaForMaskedLM", {**TEXT, **SIZES, "max_position_embeddings": 24}),
    "roberta with a head": ("RobertaForSequenceClassification", {**TEXT, **SIZES, "max_position_embeddings": 24}),
    "vit": ("ViTForImageClassification", {**SIZES, **PIXELS}),
    "clip vision": ("CLIPVisionModelWithProjection", {**SIZES, **PIXELS, "projection_dim": 8}),
    "clip text": ("CLIPTextModelWithProjection", {**TEXT, **SIZES, "max_position_embeddings": 20, "projection_dim": 8}),
    "clip": (
        "CLIPModel",
        {
            "text_config": {**TEXT, **SIZES, "hidden_size": 24, "max_position_embeddings": 20},
            "vision_config": {**SIZES, **PIXELS},
            "projection_dim": 8,
        },
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "gated t5": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "resnet": (
        "ResNetForImageClassification",
        {**CONV, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic"},
    ),
    "bottleneck": ("ResNetForImageClassification", {**CONV, "hidden_sizes": [16, 32], "depths": [2, 1]}),
}


@cache
def kin(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and tensors of a random model of a family, as a folder on disk has them; statistics too."""
    kind, settings = FAMILIES[name]
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return stored(model)


def stored(model) -> tuple[dict, dict[str, Tensor]]:
    """A transformers model's configuration and tensors, as it saves them."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return json.loads((Path(folder) / "config.json").read_text()), load_file(Path(folder) / "model.safetensors")


def vgg(seed: int = 0) -> nn.Sequential:
    """A small plain convolutional net: convolutions with norms, pooling, a linear layer on the flattened channels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


def rebuilt(tensors) -> nn.Sequential:
    """That net with these tensors."""
    model = vgg()
    model.load_state_dict(dict(tensors))
    return _Named(model.eval())


class _Named(nn.Module):
    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers

    def forward(self, pixel_values):
        return self.layers(pixel_values)

    def state_dict(self):
        return self.layers.state_dict()

    def named_modules(self):
        return self.layers.named_modules()
