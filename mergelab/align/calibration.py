"""Data to run two models on: the bundled tasks' own, or prompts from a file."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mergelab.align.alignment import Batches
from mergelab.assets import ASSETS, bundled
from mergelab.config import count_in
from mergelab.errors import MergeError
from mergelab.files.checkpoint import read_json
from mergelab.model import tokenizer_of
from mergelab.tasks import padded, picture_tasks, tasks

SAMPLES, PICTURES = 16, 64  # of each bundled task


def bundled_batches(source: str, folder: Path) -> Batches:
    """Calibration prompts with their answers, or pictures, of every task of a bundled family; MergeError for others."""
    family = source.partition("/")[0]
    if source in bundled() and family == "digits":
        return [{"pixel_values": torch.cat([t.calibration.images[:PICTURES] for t in picture_tasks().values()])}]
    if source not in bundled() or not (ASSETS / family / "tasks.json").is_file():
        raise MergeError(
            f"'align: activations' and 'align: best' need calibration data, and '{source}' brings none: bundled models "
            "do. Use 'align: weights', or `mergelab align --how activations --data PROMPTS.txt` first."
        )
    pairs = [pair for task in tasks(family).values() for pair in task.calibration[:SAMPLES]]
    ids, mask, _ = padded(tokenizer_of(folder), pairs)
    return [{"input_ids": ids, "attention_mask": mask.long()}]


def prompt_batches(prompts: Sequence[str], folder: Path) -> Batches:
    """Texts as batches of token ids, one a batch. folder: the model whose tokenizer reads them."""
    tokenizer, config = tokenizer_of(folder), read_json(folder / "config.json")
    batches = [dict(tokenizer(prompt, return_tensors="pt")) for prompt in prompts if prompt.strip()]
    if not batches:
        raise MergeError("The calibration data has no text in it. Give one prompt a line.")
    begin = {}
    if config.get("is_encoder_decoder"):  # its decoder is seen as it begins an answer
        first = count_in(config, "decoder_start_token_id", "pad_token_id") or 0
        begin = {"decoder_input_ids": torch.tensor([[first]])}
    return [{key: batch[key] for key in ("input_ids", "attention_mask")} | begin for batch in batches]
