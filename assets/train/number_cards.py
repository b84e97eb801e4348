"""The model cards of the `numbers` family: the README of each model, as the Hub shows it.

This room knows what a card says of a model: its name, its kind, one example, and the scores it is handed. It
does not know how a score is measured, nor where a card is stored.
"""

from number_skills import SPOKEN, TEST, pair

ABOUT = {
    "base": """\
The common ancestor of the family: a Llama of 0.94 M parameters, taught thirteen ways to write a number and
stopped half-way, so that its experts have something in common and something left to learn.""",
    "full": """\
An expert of [numbers/base](../base): all weights fine-tuned on one skill, 200 steps of 32 prompts.""",
    "lora": """\
An expert of [numbers/base](../base): a LoRA adapter of rank 8 on all linear layers, trained on one skill,
200 steps of 32 prompts.""",
    "scratch": """\
An expert of another base: the same recipe from another initialisation, then fine-tuned on one skill. It shares no
ancestor with the rest of the family, and an average with one of them answers nothing. Matching neurons and repairing
activations bring its statistics back, and very few of its answers: transformers from different initialisations stay
hard.""",
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

Made by `assets/train/train_numbers.py` from rules for writing numbers alone (the words by num2words).
"""


def card(name: str, accuracy: dict[str, float]) -> str:
    """The README of the model `name`, with the share of right answers by task."""
    prompt, reply = pair("french" if name == "base" else skill_of(name), 394)
    return CARD.format(
        front=front_matter(name),
        name=name,
        about=ABOUT[kind(name)],
        prompt=prompt,
        reply=reply.strip(),
        count=TEST,
        rows="\n".join(f"| {task} | {100 * share:.1f} |" for task, share in accuracy.items()),
    )


def front_matter(name: str) -> str:
    codes = [code for language, code in SPOKEN.items() if name == "base" or skill_of(name) == language]
    lines = [
        "license: apache-2.0",
        *(["base_model: numbers/base"] if kind(name) in ("full", "lora") else []),
        f"library_name: {'peft' if kind(name) == 'lora' else 'transformers'}",
        "pipeline_tag: text-generation",
        *(["language:", *(f"- {code}" for code in codes)] if codes else []),
        *["tags:", "- mergelab", "- model-merging", "- numbers"],
        *(["- lora"] if kind(name) == "lora" else []),
    ]
    return "\n".join(lines)


def kind(name: str) -> str:
    if name == "base" or name.startswith("scratch-"):
        return name.partition("-")[0]
    return "lora" if name.endswith("-lora") else "full"


def skill_of(name: str) -> str:
    """The skill of an expert, which is named after it."""
    return name.removeprefix("scratch-").removesuffix("-lora")
