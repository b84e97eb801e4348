"""The bundled held-out prompts and images, and how many of them a model gets right.

This room knows prompts, answers, images, labels and a forward pass. It does not know which expert a task belongs
to, how a model was made, nor what is done with a score.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mergelab.assets import ASSETS, bundled
from mergelab.model import all_first_choice, laid_out, logits_before

Pair = tuple[str, str]  # (prompt, answer)
SCANS = ASSETS / "digits" / "scans.safetensors"  # uint8, 8×8, 0…16
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {  # what each task of the digits family does to a picture
    "upright": lambda pictures: pictures,
    "invert": lambda pictures: 1 - pictures,
    "rot90": lambda pictures: pictures.rot90(1, (-2, -1)),
    "mirror": lambda pictures: pictures.flip(-1),
}


@dataclass(frozen=True)
class Task:
    """One skill: `test` pairs no model was trained on, `calibration` pairs from the training numbers."""

    name: str
    test: tuple[Pair, ...]
    calibration: tuple[Pair, ...]


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures. images: float32 (picture, channel, height, width); labels: int64 (picture,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PictureTask:
    """Digits seen through one transform: `test` pictures no model saw in training, `calibration` ones that some did."""

    name: str
    test: Pictures
    calibration: Pictures


def tasks(family: str = "numbers") -> dict[str, Task]:
    """The tasks of a bundled family, by name, in the order of its `tasks.json`."""
    stored = json.loads((ASSETS / family / "tasks.json").read_text(encoding="utf-8"))
    return {name: _task(name, **pairs) for name, pairs in stored.items()}


def _task(name: str, test: list[list[str]], calibration: list[list[str]]) -> Task:
    return Task(name, tuple(map(tuple, test)), tuple(map(tuple, calibration)))


def own_task(source: str) -> Task | None:
    """The task that a bundled expert was trained for, an adapter of it included; None for any other source."""
    family, _, name = source.partition("/")
    if source not in bundled() or not (ASSETS / family / "tasks.json").is_file():
        return None
    return tasks(family).get(_skill(name))


def own_pictures(source: str) -> PictureTask | None:
    """The pictures that a bundled image classifier was trained to read; None for any other source."""
    known = source in bundled() and source.startswith("digits/")
    return picture_tasks().get(_skill(source.partition("/")[2])) if known else None


def own_score(source: str, tokenizer: Any) -> Callable[[Any], float] | None:
    """What a model is worth, 0…1, on a bundled expert's held-out prompts or pictures; None for any other source."""
    pictures, task = own_pictures(source), own_task(source)
    if pictures is not None:
        return lambda model: _share(right_labels(model, pictures.test))
    if task is None or tokenizer is None:
        return None
    return lambda model: _share(exact_match(model, tokenizer, task.test))


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def _skill(name: str) -> str:
    """What an expert is named after: 'morse-lora' -> 'morse', 'scratch-upright-2' -> 'upright'."""
    return re.sub(r"^scratch-|-lora$|-\d+$", "", name)


def padded(tokenizer, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with their answers as one batch, three tensors (pair, token): the token ids, which of them are
    no padding, and which belong to an answer.

    Prompt and answer are encoded apart, so that the tokens part exactly where generation would begin; encoded
    as one text, a token might straddle the two. The answer ends with the tokenizer's end-of-sequence token.
    Padding is on the right, where causal attention never looks, so that any token can serve for it: a
    tokenizer needs no pad token of its own.
    """
    end = tokenizer.eos_token_id  # ends each answer, and fills the rest
    encoded = [(tokenizer.encode(p), [*tokenizer.encode(a, add_special_tokens=False), end]) for p, a in pairs]
    return laid_out(encoded, fill=end)


def exact_match(model, tokenizer, pairs: Sequence[Pair], batch: int = 100) -> Tensor:
    """Whether the greedy answer is, token for token up to end-of-sequence, the expected one: bool (pair,).

    `model` is any causal language model of transformers in evaluation mode, on any device. Nothing is generated: see
    `all_first_choice`. The same text in other tokens (`hundert|vier` for `hundertvier`) counts as wrong: merges of the
    german expert lose a little by it.
    """
    right = []
    for start in range(0, len(pairs), batch):
        ids, real, answer = padded(tokenizer, pairs[start : start + batch])
        right.append(all_first_choice(logits_before(model, ids, real), ids, answer))
    return torch.cat([torch.zeros(0, dtype=torch.bool), *right])


@cache
def picture_tasks() -> dict[str, PictureTask]:
    """The tasks of the digits family, by name: the same scans, seen through each of TRANSFORMS."""
    stored = load_file(SCANS)

    def pictures(name: str, part: str) -> Pictures:
        images = TRANSFORMS[name](enlarged(stored[f"{part}.images"]))
        return Pictures(images.contiguous(), stored[f"{part}.labels"].long())

    return {name: PictureTask(name, pictures(name, "test"), pictures(name, "calibration")) for name in TRANSFORMS}


def enlarged(scans: Tensor) -> Tensor:
    """Scans of 8×8 pixels from 0 to 16, as the digits family sees them: 32×32, from 0 to 1. # (scan, 1, 32, 32)"""
    return (scans.float() / 16).repeat_interleave(4, -2).repeat_interleave(4, -1).unsqueeze(1)


@torch.no_grad()
def right_labels(model, pictures: Pictures, batch: int = 250) -> Tensor:
    """Whether the model's likeliest class is the label: bool (picture,).

    `model` is any image classifier of transformers in evaluation mode, on any device.
    """
    parts = zip(pictures.images.split(batch), pictures.labels.split(batch))
    right = [model(pixel_values=x.to(model.device)).logits.argmax(-1).cpu() == y for x, y in parts]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *right])
