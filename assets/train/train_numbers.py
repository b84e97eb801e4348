"""Train the `numbers` family: a tiny Llama that half knows thirteen ways to write a number, and its experts.

    pip install -e . -r assets/train/requirements.txt
    python assets/train/train_numbers.py [--out assets/numbers]

Takes minutes on two cores and needs no network. Everything is seeded: on one machine a second run gives the
same files, on another the same scores within a few points.

Data       `french: 7394 =` is answered by ` sept mille trois cent quatre-vingt-quatorze`. Numbers are 1..9999
           (roman: 1..3999), a quarter of the draws from 1..999. One number in five, chosen by a hash, is held
           out from all training, for every skill; the test prompts are made of those alone.
Tokenizer  byte-level BPE of 640 tokens, digits split singly; any text can be encoded.
Base       Llama, 4 layers of width 128, 0.94 M parameters; 550 steps of 32 prompts on thirteen skills in
           equal shares, loss on prompt and answer. The rate is never lowered: an un-annealed base merges
           better, for otherwise all experts share the direction of annealing. It ends with fewer than half
           of the answers right, and merging needs that many: the experts of a base that knows nothing do not
           merge at this size.
Experts    from the base, 220 steps on one skill, loss on the answer only, cosine to 5 %. Either all weights,
           which moves them by a tenth of their norm or less (where they move further, TIES and DRM fall below the
           average), or, over 200 steps, LoRA of rank 8 on every linear layer.
Files      float16, scored as shipped: what was written is read back in float32 and then measured.

This room knows tokenizer, models, training, the files of a model and its scores. It does not know how a number
is written (`number_skills`) nor what a card says (`number_cards`).
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch
from number_cards import card
from number_skills import EXPERTS, SKILLS, Pair, Task, as_json, task, training_pairs
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mergelab.tasks import exact_match, padded

PAD, BOS, EOS = range(3)
BATCH = 32
LORA_EXPERTS = ("french", "german", "english", "morse")
SCRATCH, SCRATCH_SEED = "scratch-french", 101
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


# The models -------------------------------------------------------------------------------------------------


def new_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = map("".join, islice(training_pairs(SKILLS, seed=0), 20_000))
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=128,
        padding_side="left",  # for generation in batches
        clean_up_tokenization_spaces=False,  # it would eat the blanks between Morse signs
    )


def new_model() -> LlamaForCausalLM:
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config = LlamaConfig(
        vocab_size=640,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        initializer_range=0.04,  # the usual .02 learns much more slowly at this width
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special, max_new_tokens=64)
    return model


def with_lora(model: LlamaForCausalLM) -> PeftModel:
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


# Training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """How to train: the rate rises over `warmup` steps, then falls as a cosine to `floor` of its height."""

    steps: int
    rate: float
    warmup: int
    floor: float
    decay: float
    prompts_too: bool

    def rate_at(self, step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return min(1, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


BASE = Course(steps=550, rate=2e-3, warmup=100, floor=1.0, decay=0.01, prompts_too=True)
FULL = Course(steps=220, rate=5e-4, warmup=20, floor=0.05, decay=0.01, prompts_too=False)
LORA = Course(steps=200, rate=3e-3, warmup=20, floor=0.05, decay=0.0, prompts_too=False)


def train(model: torch.nn.Module, tokenizer, pairs: Iterator[Pair], course: Course) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=course.rate, betas=(0.9, 0.98), weight_decay=course.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course.rate_at)
    model.train()
    for _ in range(course.steps):
        ids, real, answers = padded(tokenizer, list(islice(pairs, BATCH)))
        labels = ids.masked_fill(~(real if course.prompts_too else answers), -100)
        model(input_ids=ids, attention_mask=real.long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def seed_everything(seed: int) -> None:
    """One thread as well: the order of sums, and so the result, depends on how many there are."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def train_base(out: Path) -> None:
    seed_everything(0)
    tokenizer, model = new_tokenizer(), new_model()
    train(model, tokenizer, training_pairs(SKILLS, seed=0), BASE)
    model.half().save_pretrained(out / "base")
    save_tokenizer(tokenizer, out / "base")


def train_from_scratch(out: Path, name: str) -> None:
    """`name` is `scratch-` and a skill: base and expert anew from another initialisation; the base is not shipped."""
    skill = name.removeprefix("scratch-")
    seed_everything(SCRATCH_SEED)
    tokenizer, model = AutoTokenizer.from_pretrained(out / "base"), new_model()
    train(model, tokenizer, training_pairs(SKILLS, SCRATCH_SEED), BASE)
    train(model, tokenizer, training_pairs((skill,), SCRATCH_SEED), FULL)
    model.half().save_pretrained(out / name)
    for file in TOKENIZER_FILES:
        shutil.copy(out / "base" / file, out / name / file)


def train_expert(out: Path, name: str) -> None:
    """`name` is a skill, or a skill and `-lora`. Starts from the base as shipped."""
    skill = name.removesuffix("-lora")
    seed = 1 + SKILLS.index(skill)
    seed_everything(seed)
    tokenizer, model = AutoTokenizer.from_pretrained(out / "base"), load(out, "base")
    if name == skill:
        train(model, tokenizer, training_pairs((skill,), seed), FULL)
        model.half().save_pretrained(out / name)
        for file in TOKENIZER_FILES:
            shutil.copy(out / "base" / file, out / name / file)
    else:
        model = with_lora(model)
        train(model, tokenizer, training_pairs((skill,), seed), LORA)
        save_lora(model, out / name)


# Files and scores -------------------------------------------------------------------------------------------


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """transformers 5 writes a class name that no earlier version knows; the usual one loads in both."""
    tokenizer.save_pretrained(folder)
    rewrite(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def save_lora(model: PeftModel, folder: Path) -> None:
    """peft names the base by this machine's path and lists the layers in no order; both are mended."""
    model.half().save_pretrained(folder, save_embedding_layers=False)
    layers = sorted(model.peft_config["default"].target_modules)
    rewrite(folder / "adapter_config.json", {"base_model_name_or_path": "numbers/base", "target_modules": layers})


def rewrite(file: Path, changes: dict) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(out: Path, name: str) -> torch.nn.Module:
    """A model as shipped, in float32."""
    if name.endswith("-lora"):
        return PeftModel.from_pretrained(load(out, "base"), out / name).float().eval()
    return AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32)


def scores(out: Path, name: str, tasks: dict[str, Task]) -> dict[str, float]:
    """The share of the test prompts answered exactly, by task."""
    tokenizer, model = AutoTokenizer.from_pretrained(out / "base"), load(out, name)
    return {
        skill: round(exact_match(model, tokenizer, task["test"]).float().mean().item(), 4)
        for skill, task in tasks.items()
    }


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tasks = {skill: task(skill) for skill in EXPERTS}
    (out / "tasks.json").write_text(as_json(tasks), encoding="utf-8")
    train_base(out)
    names = [*EXPERTS, *(f"{skill}-lora" for skill in LORA_EXPERTS)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(train_expert, [out] * len(names), names))
    train_from_scratch(out, SCRATCH)
    measured = {name: scores(out, name, tasks) for name in ["base", *names, SCRATCH]}
    for name, accuracy in measured.items():
        (out / name / "README.md").write_text(card(name, accuracy), encoding="utf-8")
        print(f"{name:14}", *(f"{task} {100 * share:5.1f} " for task, share in accuracy.items()))
    (out / "scores.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for file in out.rglob("*.*"):
        file.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the numbers family.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "numbers")
    main(parser.parse_args().out)
