"""Tiny models of many architectures, random but for their seed, and something that each of them can read."""

from functools import cache

import torch
import transformers
from making import noise

TEXT = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 24}
GROUPED = TEXT | LAYERS | {"num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "LlamaForCausalLM": transformers.LlamaConfig(**GROUPED),
    "MistralForCausalLM": transformers.MistralConfig(**GROUPED, sliding_window=None),
    "Qwen2ForCausalLM": transformers.Qwen2Config(**GROUPED),
    "Qwen3ForCausalLM": transformers.Qwen3Config(**GROUPED, head_dim=8),
    "GemmaForCausalLM": transformers.GemmaConfig(**GROUPED, head_dim=8),
    "GPT2LMHeadModel": transformers.GPT2Config(
        vocab_size=40, bos_token_id=1, eos_token_id=2, n_embd=16, n_layer=2, n_head=2, n_positions=64
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    ),
    "BertForMaskedLM": transformers.BertConfig(**TEXT, **LAYERS, max_position_embeddings=64),
    "ViTForImageClassification": transformers.ViTConfig(**LAYERS, image_size=8, patch_size=4, num_labels=5),
    "ResNetForImageClassification": transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    ),
}


@cache
def _weights(name: str, seed: int) -> dict:
    torch.manual_seed(seed)
    model = getattr(transformers, name)(CONFIGS[name])
    for parameter in model.parameters():  # norms and biases that are not 1 and 0, weights that do something
        parameter.data += 0.15 * torch.randn_like(parameter)
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.data += torch.rand_like(buffer)
    return model.state_dict()


def model(name: str, seed: int = 0):
    """A model of a family in evaluation mode; the same for the same seed."""
    made = getattr(transformers, name)(CONFIGS[name])
    made.load_state_dict(_weights(name, seed))
    return made.eval()


def average(name: str, seeds=(1, 2)):
    """The plain average of the models of some seeds."""
    made = model(name, seeds[0])
    states = [_weights(name, seed) for seed in seeds]
    floats = {key for key, tensor in states[0].items() if tensor.is_floating_point()}
    mean = {key: torch.stack([state[key] for state in states]).mean(0) for key in floats}
    made.load_state_dict(states[0] | mean)
    return made


def batch(name: str, samples: int = 8, seed: int = 0) -> dict:
    """What the family reads: images, or token ids of several lengths, padded on the right."""
    if "Image" in name:
        depth, size = (1, 16) if "ResNet" in name else (3, 8)
        return {"pixel_values": noise(samples, depth, size, size, seed=seed, dtype=torch.float32)}
    given = _ids(samples, 9, seed)
    if "Conditional" in name:
        decoder = _ids(samples, 7, seed + 1)
        given |= {f"decoder_{key}": tensor for key, tensor in decoder.items()}
    return given


def _ids(samples: int, longest: int, seed: int) -> dict:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (samples, longest), generator=draw)
    lengths = torch.randint(4, longest + 1, (samples, 1), generator=draw)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(model, given: dict) -> torch.Tensor:
    """The model's logits where there is no padding, (row, label)."""
    with torch.no_grad():
        found = model(**given).logits
    mask = given.get("decoder_attention_mask", given.get("attention_mask"))
    return found if mask is None else found[mask.bool()]
