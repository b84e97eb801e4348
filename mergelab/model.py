"""A model folder made to run: any architecture of transformers, in float32, placed by accelerate; prompted, streamed.

The only room that knows transformers. Weights come from the folder's safetensors alone; code in a folder never runs.
"""

import copy
import re
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from mergelab.config import count_in, names_in, part_of
from mergelab.errors import MergeError, brief
from mergelab.files.checkpoint import Checkpoint, read_json
from mergelab.words import counted


@dataclass(frozen=True)
class Running:
    """A model in memory with its tokenizer (None if its folder has none) and the name of its folder."""

    model: Any
    tokenizer: Any
    name: str = ""

    @property
    def room(self) -> int | None:
        """How many positions the model knows; None if its configuration does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)


def running(folder: Path) -> Running:
    """Load whatever architecture config.json names: text, text to text, encoder, images. MergeError if it cannot be."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise MergeError(f"'{folder.name}' has no config.json, so it cannot be prompted.")
    config = read_json(folder / "config.json")
    kind = _architecture(config, folder.name)
    _check_size(kind, config, folder)
    safe = {"local_files_only": True, "trust_remote_code": False}
    how = {"dtype": torch.float32, "device_map": _places(), "use_safetensors": True, "output_loading_info": True}
    try:
        model, about = kind.from_pretrained(folder, **how, **safe)
    except Exception as error:  # transformers has one of its own for whatever a folder may hold
        raise MergeError(f"'{folder.name}' cannot be loaded, so it cannot be prompted: {_reason(error)}") from error
    if lost := sorted(about["missing_keys"]):
        raise MergeError(
            f"'{folder.name}' lacks {counted(len(lost), 'tensor')} that a {kind.__name__} has, '{lost[0]}' first: it "
            "would run with random numbers there. Take a whole model."
        )
    return Running(model.eval(), _tokenizer(folder), folder.name)


def _tokenizer(folder: Path) -> Any | None:
    """A folder's tokenizer; None if it has none, or one that no library here can read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):
        return None


def _check_size(kind: Any, config: dict, folder: Path) -> None:
    """MergeError if config.json describes a model far larger than the weights beside it: nothing would fill it."""
    try:
        entries = Checkpoint(folder, folder.name).entries.values()
    except MergeError:  # said by those who load it
        return
    held = sum(prod(entry.shape) for entry in entries)
    layers = count_in(config, "num_hidden_layers", "n_layer", "num_layers") or 0
    if layers <= len(entries):
        try:
            wanted = sum(parameter.numel() for parameter in _without_memory(kind, config).parameters())
        except Exception:  # said by those who load it
            return
    if layers > len(entries) or wanted > 2 * held:
        raise MergeError(
            f"config.json of '{folder.name}' describes a larger model than its weights are ({held:,} numbers in "
            f"{counted(len(entries), 'tensor')}). Take a whole model."
        )


def _places() -> str:
    """Where accelerate puts a model: where there is room; not on Apple's GPUs, which have no float64 for moments."""
    return "cpu" if torch.backends.mps.is_available() else "auto"


def _reason(error: Exception) -> str:
    """The beginning of what an error says, in one line."""
    return " ".join(str(error).split())[:200]


def _architecture(config: dict, name: str) -> Any:
    """The class that config.json names, if transformers itself has it; for one that names none, a text model."""
    import transformers

    named = names_in(config, "architectures")
    if not named:
        text_to_text = config.get("is_encoder_decoder")
        return transformers.AutoModelForSeq2SeqLM if text_to_text else transformers.AutoModelForCausalLM
    kind = getattr(transformers, named[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise MergeError(
            f"'{name}' is a {named[0]}, which this version of transformers has not; it cannot be prompted."
        )
    return kind


def answer(run: Running, prompt: str, *, tokens: int = 48, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
    """The model's answer as it grows: each item is all of it so far. Closing the iterator stops the model.

    temperature 0 is greedy; otherwise sampled, from `seed`.
    """
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    inputs = encoded(run, prompt)
    streamer = TextIteratorStreamer(run.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, failure = threading.Event(), []
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

    def generate() -> None:
        try:
            torch.manual_seed(seed)
            run.model.generate(
                **inputs,
                **sampling,
                max_new_tokens=tokens,
                streamer=streamer,
                pad_token_id=run.tokenizer.pad_token_id or run.tokenizer.eos_token_id,
                stopping_criteria=StoppingCriteriaList([lambda ids, scores: torch.full(ids.shape[:1], stop.is_set())]),
            )
        except Exception as error:  # carried over to the caller's thread
            failure.append(error)
            streamer.end()

    worker = threading.Thread(target=generate, daemon=True)
    worker.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text.lstrip()  # the space that parts it from the prompt
    finally:
        stop.set()
        worker.join()
    if failure:
        raise failure[0]
    yield text.lstrip()


def encoded(run: Running, prompt: str) -> dict[str, torch.Tensor]:
    """Token ids and mask of a prompt, through the chat template if the model has one; MergeError if it takes none."""
    if run.tokenizer is None:
        raise MergeError(f"'{run.name}' has no tokenizer that can be loaded, so it cannot be prompted.")
    if not run.model.can_generate():
        raise MergeError(f"'{run.name}' is a {type(run.model).__name__}: it writes no text, so it cannot be prompted.")
    if getattr(run.tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": prompt}]
        prompt = run.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        encoded = run.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    else:
        encoded = run.tokenizer(prompt, return_tensors="pt")
    if run.room and encoded["input_ids"].shape[1] >= run.room:
        raise MergeError(f"The prompt has {encoded['input_ids'].shape[1]} tokens; this model has room for {run.room}.")
    if not encoded["input_ids"].shape[1]:
        raise MergeError("The prompt is empty. Write something to ask.")
    return {key: encoded[key].to(run.model.device) for key in ("input_ids", "attention_mask")}


def built(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """A model in memory, float32, of tensors by their names on disk; MergeError if transformers cannot build it."""
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    named = next(iter(names_in(config, "architectures")), "")
    kind = getattr(transformers, named, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise MergeError(f"config.json names no architecture that transformers has ('{named}'), so it cannot be run.")
    try:
        settings = kind.config_class.from_dict(copy.deepcopy(dict(config)))  # which writes into what it is given
        model = kind.from_pretrained(None, config=settings, state_dict=dict(tensors), dtype=torch.float32)
    except Exception as error:  # transformers has one of its own for whatever a configuration may hold
        raise MergeError(f"These tensors make no {named}: {_reason(error)}") from error
    return model.eval()


def in_memory(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Name on disk -> name in the model that transformers makes of it; the same where that cannot be told."""
    import transformers

    kind = getattr(transformers, next(iter(names_in(config, "architectures")), ""), None)
    names = list(names)
    try:
        model = _without_memory(kind, config)
    except Exception:  # no class of theirs, or no configuration of it: said by those who run it
        return {name: name for name in names}
    held = model.state_dict()
    return {name: loaded_as(name, model, held) or name for name in names}


def loaded_as(name: str, model: Any, held: Container[str]) -> str | None:
    """What a model calls a tensor of its files, with or without its class's prefix; None if it holds none such."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return next((way for way in (name, prefix + name, name.removeprefix(prefix)) if way in held), None)


def _without_memory(kind: Any, config: Mapping[str, Any]) -> Any:
    """A model of a class, whose tensors have shapes alone."""
    with torch.device("meta"):
        return kind(kind.config_class.from_dict(copy.deepcopy(dict(config))))


def outputs(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a model answers to a batch, as `answered`."""
    with torch.no_grad():
        return answered(model(**batch))


def answered(found: Any) -> torch.Tensor:
    """What a forward pass has given: logits, or the embeddings or states of a model that has none; else MergeError."""
    if isinstance(found, torch.Tensor):
        return found
    if found.get("start_logits") is not None:  # of an answer's span
        return torch.stack([found["start_logits"], found["end_logits"]], -1)
    keys = ("logits", "prediction_logits", "logits_per_image", "image_embeds", "text_embeds", "last_hidden_state")
    for key in keys:
        if found.get(key) is not None:
            return found[key]
    raise MergeError(f"What the model gives ({', '.join(found)}) is not known here: none of {', '.join(keys)}.")


def sees_encoder(module: str) -> bool:
    """Whether a module of an encoder-decoder works on the encoder's positions: all of it, or keys and values across."""
    parts = module.split(".")
    across = any(part in ("EncDecAttention", "encoder_attn") for part in parts)
    return parts[-1] in ("k", "v", "k_proj", "v_proj") if across else "encoder" in parts


def laid_out(encoded: Sequence[tuple[Sequence[int], Sequence[int]]], fill: int = 0) -> tuple[torch.Tensor, ...]:
    """Prompts with their answers as one batch, padded on the right, where causal attention never looks.

    encoded: the tokens of each prompt and of its answer. Three tensors (row, token): the token ids, which of them are
    no padding, and which belong to an answer.
    """
    begin = torch.tensor([len(before) for before, _ in encoded])[:, None]
    end = begin + torch.tensor([len(after) for _, after in encoded])[:, None]
    place = torch.arange(int(end.max()))
    ids = torch.full((len(encoded), len(place)), fill)
    for row, (before, after) in zip(ids, encoded):
        row[: len(before) + len(after)] = torch.tensor([*before, *after])
    return ids, place < end, (begin <= place) & (place < end)


@torch.no_grad()
def logits_before(model: Any, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """What a causal model says before each token but the first, on its own device. (row, token - 1, word)"""
    return model(input_ids=ids.to(model.device), attention_mask=real.long().to(model.device)).logits[:, :-1]


def all_first_choice(logits: torch.Tensor, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Whether all tokens of a row's answer are the model's first choice after those before them: bool (row,).

    That is whether greedy decoding gives just this answer: if all are, it picks the first, so sees the same prefix, so
    picks the second, and so on; if one is not, it leaves the answer there. One forward pass tells.
    """
    return ((logits.argmax(-1).cpu() == ids[:, 1:]) | ~answer[:, 1:]).all(1)


def probe(config: Mapping[str, Any], seed: int = 0, samples: int = 1) -> dict[str, torch.Tensor]:
    """Random tokens, pixels, or both: something that a model of this configuration can be run on."""
    draw = torch.Generator().manual_seed(seed)
    text, images = part_of(config, "text_config") or config, part_of(config, "vision_config") or config
    batch = {}
    if size := count_in(text, "vocab_size"):
        room = min((count_in(text, "max_position_embeddings", "n_positions") or 16) - 4, 12)
        batch["input_ids"] = torch.randint(0, size, (samples, max(room, 1)), generator=draw)
        if config.get("is_encoder_decoder"):
            batch["decoder_input_ids"] = torch.randint(0, size, (samples, 8), generator=draw)
    if "num_channels" in images or "image_size" in images:
        sides = _sides(images.get("image_size") or 32)
        batch["pixel_values"] = torch.randn(samples, count_in(images, "num_channels") or 3, *sides, generator=draw)
    return batch


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of the images that a model takes, by its configuration."""
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise MergeError(f"config.json: 'image_size' must be one whole number or two, not {brief(size)}.")
    return sides


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a model folder, alone; MergeError if it has none."""
    found = _tokenizer(folder)
    if found is None:
        raise MergeError(f"'{folder.name}' has no tokenizer that can be loaded, so it can read no prompts.")
    return found


def with_biases(model: Any) -> Any:
    """A copy of a model with a zero bias wherever its architecture has room for one; the outputs are the same.

    Llama and its kin have two switches in their configuration. Mistral and Qwen2 without a sliding window are Llamas
    to the bit, and become ones. Others come back as they are, or with biases in their attention alone.
    """
    from transformers import LlamaConfig

    old = model.config.to_dict()
    kind, wanted = type(model), copy.deepcopy(model.config)
    if llama := _as_llama(model):
        known = LlamaConfig(num_labels=3).to_dict().keys() - {"model_type", "architectures", "transformers_version"}
        kind, wanted = llama, LlamaConfig(**{key: old[key] for key in known & old.keys()})
    for switch in ("attention_bias", "mlp_bias"):
        if hasattr(wanted, switch):
            setattr(wanted, switch, True)
    wanted.architectures = [kind.__name__]
    made = kind(wanted).to(dtype=model.dtype, device=model.device)
    about = made.load_state_dict(model.state_dict(), strict=False)
    assert not about.unexpected_keys and all(key.endswith(".bias") for key in about.missing_keys), about
    if made.can_generate():
        made.generation_config = copy.deepcopy(model.generation_config)
    with torch.no_grad():
        for key in about.missing_keys:
            made.get_parameter(key).zero_()
    return made.eval()


def takes_biases(model: Any) -> bool:
    """Whether `with_biases` can give this model a bias in attention and MLP alike."""
    return bool(_as_llama(model)) or all(hasattr(model.config, key) for key in ("attention_bias", "mlp_bias"))


def _as_llama(model: Any) -> Any:
    """The class of Llama that a Mistral or Qwen2 is to the bit; None for any other model."""
    import transformers

    if model.config.model_type not in ("mistral", "qwen2") or _slides(model.config):
        return None
    return getattr(transformers, re.sub("^(Mistral|Qwen2)", "Llama", type(model).__name__), None)


def _slides(config: Any) -> bool:
    """Whether attention looks back through a window: Qwen2 has a length for one even where it is switched off."""
    if hasattr(config, "use_sliding_window"):
        return bool(config.use_sliding_window)
    return getattr(config, "sliding_window", None) is not None
