"""Train the `numbers` family: a tiny Llama that half knows thirteen ways to write a number, and its experts.

    pip install -r assets/train/requirements.txt
    python assets/train/numbers.py [--out assets/numbers]

Takes minutes on two cores and needs no network. Everything is seeded: on one machine a second run gives the
same files, on another the same scores within a few points.

Data       `french: 7394 =` is answered by ` sept mille trois cent quatre-vingt-quatorze`. Numbers are 1..9999
           (roman: 1..3999), a quarter of the draws from 1..999. One number in five, chosen by a hash, is held
           out from all training, for every skill; the test prompts are made of those alone.
Tokenizer  byte-level BPE of 640 tokens, digits split singly; any text can be encoded.
Base       Llama, 4 layers of width 128, 0.94 M parameters; 500 steps of 32 prompts on thirteen skills in
           equal shares, loss on prompt and answer. The rate is never lowered: an un-annealed base merges
           better, for otherwise all experts share the direction of annealing. It ends with fewer than half
           of the answers right, and merging needs that many: the experts of a base that knows nothing do not
           merge at this size.
Experts    from the base, 200 steps on one skill, loss on the answer only, cosine to 5 %. Either all weights,
           which moves them by about a sixth of their norm, or LoRA of rank 8 on every linear layer.
Files      float16, scored as shipped: what was written is read back in float32 and then measured.
"""

import sys
from pathlib import Path

# Python puts this script's folder first, where `import numbers` in a library would find this very file.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import json
import math
import random
import shutil
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from num2words import num2words
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

from mergelab.assets import ASSETS
from mergelab.tasks import Pair, exact_match, padded

PAD, BOS, EOS = range(3)
BATCH = 32
TEST, CALIBRATION = 200, 64  # pairs a skill
LANGUAGES = {"french": "fr", "german": "de", "english": "en", "spanish": "es"}
FAMILIAR = {"italian": "it", "dutch": "nl", "portuguese": "pt"}  # taught to the base, of no expert
EXPERTS = (*LANGUAGES, "morse", "reverse", "roman", "sort")
LORA_EXPERTS = ("french", "german", "english", "morse")
SKILLS = (*EXPERTS, *FAMILIAR, "copy", "next")


# The skills -------------------------------------------------------------------------------------------------

MORSE = ["-----", ".----", "..---", "...--", "....-", ".....", "-....", "--...", "---..", "----."]
ROMAN = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD")),
    *((100, "C"), (90, "XC"), (50, "L"), (40, "XL")),
    *((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


def in_words(number: int, language: str) -> str:
    """The number in words, without commas and soft hyphens: ways of writing, not of counting."""
    words = num2words(number, lang=language)
    return unicodedata.normalize("NFC", words).replace(",", "").replace("\u00ad", "")


def in_roman(number: int) -> str:
    numeral = ""
    for value, sign in ROMAN:
        numeral += sign * (number // value)
        number %= value
    return numeral


def answer(skill: str, number: int) -> str:
    digits = str(number)
    match skill:
        case "morse":
            return " ".join(MORSE[int(digit)] for digit in digits)
        case "reverse":
            return " ".join(reversed(digits))
        case "roman":
            return in_roman(number)
        case "sort":
            return " ".join(sorted(digits))
        case "copy":
            return digits
        case "next":
            return str(number + 1)
        case language:
            return in_words(number, (LANGUAGES | FAMILIAR)[language])


def pair(skill: str, number: int) -> Pair:
    return f"{skill}: {number} =", " " + answer(skill, number)


# The numbers ------------------------------------------------------------------------------------------------


def held_out(number: int) -> bool:
    """Multiplicative hashing: one number in five, spread evenly, the same for every skill and every model."""
    return number * 2654435761 % 2**32 / 2**32 < 0.2


def numbers(skill: str, chance: random.Random, held: bool) -> Iterator[int]:
    """Endless draws of numbers that are held out, or that are not."""
    largest = 3999 if skill == "roman" else 9999
    while True:
        number = chance.randint(1, 999 if chance.random() < 0.25 else largest)
        if held_out(number) == held:
            yield number


def training_pairs(skills: tuple[str, ...], seed: int) -> Iterator[Pair]:
    """Endless pairs to train on, the skills in equal shares."""
    chance = random.Random(seed)
    drawn = {skill: numbers(skill, chance, held=False) for skill in skills}
    while True:
        skill = chance.choice(skills)
        yield pair(skill, next(drawn[skill]))


def take(count: int, items: Iterator) -> list:
    return [next(items) for _ in range(count)]


def distinct(count: int, items: Iterator) -> list:
    found = {}
    while len(found) < count:
        found[next(items)] = None
    return list(found)


def task(skill: str) -> dict[str, list[Pair]]:
    """Test pairs of held-out numbers and calibration pairs of training numbers."""
    chance = random.Random(f"task {skill}")
    test = distinct(TEST, numbers(skill, chance, held=True))
    calibration = distinct(CALIBRATION, numbers(skill, chance, held=False))
    return {"test": [pair(skill, n) for n in test], "calibration": [pair(skill, n) for n in calibration]}


# The models -------------------------------------------------------------------------------------------------


def new_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    texts = map("".join, take(20_000, training_pairs(SKILLS, seed=0)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
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


BASE = Course(steps=500, rate=2e-3, warmup=100, floor=1.0, decay=0.01, prompts_too=True)
FULL = Course(steps=200, rate=7e-4, warmup=20, floor=0.05, decay=0.01, prompts_too=False)
LORA = Course(steps=200, rate=3e-3, warmup=20, floor=0.05, decay=0.0, prompts_too=False)


def train(model: torch.nn.Module, tokenizer, pairs: Iterator[Pair], course: Course) -> None:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=course.rate, betas=(0.9, 0.98), weight_decay=course.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course.rate_at)
    model.train()
    for _ in range(course.steps):
        ids, real, answers = padded(tokenizer, take(BATCH, pairs))
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


# Files ------------------------------------------------------------------------------------------------------


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """transformers 5 writes a class name that no earlier version knows; the usual one loads in both."""
    tokenizer.save_pretrained(folder)
    rewrite(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def rewrite(file: Path, changes: dict) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_lora(model: PeftModel, folder: Path) -> None:
    """peft names the base by this machine's path and lists the layers in no order; both are mended."""
    model.half().save_pretrained(folder, save_embedding_layers=False)
    layers = sorted(model.peft_config["default"].target_modules)
    changes = {"base_model_name_or_path": "numbers/base", "target_modules": layers}
    rewrite(folder / "adapter_config.json", changes)


def load(out: Path, name: str) -> torch.nn.Module:
    """A model as shipped, in float32."""
    if name.endswith("-lora"):
        return PeftModel.from_pretrained(load(out, "base"), out / name).float().eval()
    return AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32)


def write_tasks(out: Path, tasks: dict[str, dict[str, list[Pair]]]) -> None:
    """One pair a line, so that a change can be read in a diff."""

    def lines(pairs):
        return "[\n" + ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs) + "\n]"

    def kinds(task):
        return "{" + ",\n".join(f'"{kind}": {lines(pairs)}' for kind, pairs in task.items()) + "}"

    text = "{" + ",\n".join(f'"{skill}": {kinds(task)}' for skill, task in tasks.items()) + "}\n"
    (out / "tasks.json").write_text(text, encoding="utf-8")


def scores(out: Path, name: str, tasks: dict[str, dict[str, list[Pair]]]) -> dict[str, float]:
    """The share of the test prompts answered exactly, by task."""
    tokenizer, model = AutoTokenizer.from_pretrained(out / "base"), load(out, name)
    return {
        skill: round(exact_match(model, tokenizer, task["test"]).float().mean().item(), 4)
        for skill, task in tasks.items()
    }


ABOUT = {
    "base": """\
The common ancestor of the family: a Llama of 0.94 M parameters, taught thirteen ways to write a number and
stopped half-way, so that its experts have something in common and something left to learn.""",
    "full": """\
An expert of [numbers/base](../base): all weights fine-tuned on one skill, 200 steps of 32 prompts.""",
    "lora": """\
An expert of [numbers/base](../base): a LoRA adapter of rank 8 on all linear layers, trained on one skill,
200 steps of 32 prompts.""",
}

CARD = """\
---
{front}
---

# numbers/{name}

{about}
It is small enough to merge in a blink, and of no use but to show what merging does.

Prompt `{prompt}`, expected answer `{reply}`.

Answers that are right token for token, in percent of {count} prompts a task with numbers that no model of the
family was trained on:

| task | exact match |
|---|---|
{rows}

Made by `assets/train/numbers.py` from rules for writing numbers alone (the words by num2words).
"""


def kind(name: str) -> str:
    return "base" if name == "base" else "lora" if name.endswith("-lora") else "full"


def front_matter(name: str) -> str:
    spoken = LANGUAGES | FAMILIAR if name == "base" else LANGUAGES
    codes = [code for language, code in spoken.items() if name == "base" or name.startswith(language)]
    lines = [
        "license: apache-2.0",
        *(["base_model: numbers/base"] if name != "base" else []),
        f"library_name: {'peft' if kind(name) == 'lora' else 'transformers'}",
        "pipeline_tag: text-generation",
        *(["language:", *(f"- {code}" for code in codes)] if codes else []),
        *["tags:", "- mergelab", "- model-merging", "- numbers"],
        *(["- lora"] if kind(name) == "lora" else []),
    ]
    return "\n".join(lines)


def card(name: str, accuracy: dict[str, float]) -> str:
    """The README that the Hub shows, with what was measured."""
    prompt, reply = pair("french" if name == "base" else name.removesuffix("-lora"), 394)
    return CARD.format(
        front=front_matter(name),
        name=name,
        about=ABOUT[kind(name)],
        prompt=prompt,
        reply=reply.strip(),
        count=TEST,
        rows="\n".join(f"| {task} | {100 * share:.1f} |" for task, share in accuracy.items()),
    )


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tasks = {skill: task(skill) for skill in EXPERTS}
    write_tasks(out, tasks)
    train_base(out)
    names = [*EXPERTS, *(f"{skill}-lora" for skill in LORA_EXPERTS)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(train_expert, [out] * len(names), names))
    measured = {name: scores(out, name, tasks) for name in ["base", *names]}
    for name, accuracy in measured.items():
        (out / name / "README.md").write_text(card(name, accuracy), encoding="utf-8")
        print(f"{name:14}", *(f"{task} {100 * share:5.1f} " for task, share in accuracy.items()))
    (out / "scores.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for file in out.rglob("*.*"):
        file.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the numbers family.")
    parser.add_argument("--out", type=Path, default=ASSETS / "numbers")
    main(parser.parse_args().out)
