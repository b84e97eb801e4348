"""Calibration data: prompts, with answers, as batches that a model can be run on.

A language model is calibrated on prompts together with the answers that its expert gives: what a merge has lost shows
while it answers. Prompts alone leave nearly half of the gain behind.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mergelab.errors import MergeError
from mergelab.model import Running, encoded
from mergelab.repair.fit import MOST, check_size
from mergelab.repair.statistics import Batch, check_batch

Sample = tuple[str, str | None]  # (prompt, answer); None: the expert is to answer
AT_ONCE = 16  # samples a batch


def read_samples(path: str | Path) -> list[Sample]:
    """The samples in a text file: a prompt a line, or in .jsonl {"prompt": …, "answer": …} a line.

    MergeError names the line that is wrong, and says if there are none or too few.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MergeError(f"Cannot read the calibration data '{path}': {reason}.") from None
    numbered = [(i, line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise MergeError(f"The calibration data '{path}' is empty. Write at least 4 prompts, one a line.")
    plain = Path(path).suffix not in (".jsonl", ".json")
    samples = [(line, None) if plain else _parsed(line, f"'{path}', line {i},") for i, line in numbered]
    check_size(min(len(samples), MOST))
    return samples


def _parsed(line: str, where: str) -> Sample:
    try:
        data = json.loads(line)
    except ValueError:
        raise MergeError(f"{where} is not JSON. Each line of a .jsonl file holds one object.") from None
    prompt, answer = (data.get("prompt"), data.get("answer")) if isinstance(data, dict) else (None, None)
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(answer, (str, type(None))):
        raise MergeError(f'{where} must be {{"prompt": "…"}}, with an "answer" that is text if there is one.')
    return prompt, answer


def read_tensors(path: str | Path) -> list[Batch]:
    """A safetensors file with the inputs themselves: pixel_values, or input_ids and the like, (sample, …)."""
    try:
        batch = load_file(path)
    except (SafetensorError, OSError) as error:
        raise MergeError(f"Cannot read the calibration data '{path}': {error}.") from None
    if not batch or len({tensor.shape[:1] for tensor in batch.values()}) != 1 or not next(iter(batch.values())).dim():
        raise MergeError(f"'{path}' must hold the model's inputs, as pixel_values, each with as many samples.")
    return [batch]


def batches_of(expert: Running, samples: Sequence[Sample], *, tokens: int = 64) -> list[Batch]:
    """The samples as batches of 16, for the expert and for any merge that it went into.

    Where a sample has no answer, the expert gives its greedy one, of at most so many tokens. Sentences for a model
    that writes no text are taken as they are.
    """
    if expert.tokenizer is None:
        raise MergeError(f"'{expert.name}' has no tokenizer, so prompts say nothing to it. Give its inputs as tensors.")
    made = _written if expert.model.can_generate() else _read
    batches = [made(expert, samples[i : i + AT_ONCE], tokens) for i in range(0, len(samples), AT_ONCE)]
    for batch in batches:
        check_batch(expert.model, batch)
    return batches


def _read(expert: Running, samples: Sequence[Sample], tokens: int) -> Batch:
    given = [expert.tokenizer(prompt, truncation=True, return_tensors="pt")["input_ids"][0] for prompt, _ in samples]
    return _padded(given)  # which needs no token for padding


def _written(expert: Running, samples: Sequence[Sample], tokens: int) -> Batch:
    prompts = [encoded(expert, prompt)["input_ids"][0].cpu() for prompt, _ in samples]
    answers = [_ids(expert, answer) for _, answer in samples]
    open_ = [i for i, answer in enumerate(answers) if answer is None]
    for i, ids in zip(open_, greedy(expert, [prompts[i] for i in open_], tokens)):
        answers[i] = ids
    if not expert.model.config.is_encoder_decoder:
        whole = [torch.cat(both) for both in zip(prompts, answers)]
        room = expert.room
        if room and max(map(len, whole)) > room:
            raise MergeError(
                f"A prompt with its answer has {max(map(len, whole))} tokens; '{expert.name}' has room for {room}. "
                "Shorten the calibration data."
            )
        return _padded(whole)
    start = torch.tensor([expert.model.generation_config.decoder_start_token_id])
    decoder = _padded([torch.cat([start, answer]) for answer in answers])
    return _padded(prompts) | {f"decoder_{key}": tensor for key, tensor in decoder.items()}


def _ids(expert: Running, answer: str | None) -> Tensor | None:
    """The tokens of an answer, its end included where the tokenizer has one."""
    if answer is None:
        return None
    ids, end = expert.tokenizer.encode(answer, add_special_tokens=False), expert.tokenizer.eos_token_id
    return torch.tensor(ids if end is None else [*ids, end], dtype=torch.long)


def greedy(run: Running, prompts: Sequence[Tensor], tokens: int = 64) -> Iterator[Tensor]:
    """The tokens of a model's greedy answer to each prompt's tokens, up to and with the end of sequence."""
    ends = _ends(run)
    if not prompts:
        return
    two = run.model.config.is_encoder_decoder
    given = {key: tensor.to(run.model.device) for key, tensor in _padded(prompts, left=not two).items()}
    width = 1 if two else given["input_ids"].shape[1]
    if not two and (room := run.room):
        tokens = min(tokens, room - width)
    fill = run.tokenizer.pad_token_id if run.tokenizer.pad_token_id is not None else next(iter(ends), None)
    with torch.no_grad():
        out = run.model.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=fill)
    for ids in out[:, width:].cpu():
        stops = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype)).nonzero()
        yield ids[: int(stops[0]) + 1] if len(stops) else ids


def _ends(run: Running) -> list[int]:
    """The tokens that end an answer: those at which generation stops, and the tokenizer's own."""
    named = run.model.generation_config.eos_token_id
    found = named if isinstance(named, list) else [named]
    return [end for end in dict.fromkeys([run.tokenizer.eos_token_id, *found]) if end is not None]


def _padded(rows: Sequence[Tensor], left: bool = False) -> dict[str, Tensor]:
    """Rows of token ids as one batch: input_ids and attention_mask, (sample, token)."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def check_vocabulary(one: Running, other: Running) -> None:
    """MergeError if two models do not share one vocabulary: then token ids mean different things to them."""
    if one.tokenizer is None or other.tokenizer is None:
        return
    if one.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise MergeError(
            f"'{one.name}' and '{other.name}' have different vocabularies, so the same tokens mean different things to "
            "them. Only an expert with the merged model's tokenizer can repair it."
        )
