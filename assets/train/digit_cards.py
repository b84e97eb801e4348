"""The model cards of the `digits` family: the README of each model, as the Hub shows it.

This room knows what a card says of a model: its name, its kind, and the scores it is handed. It does not know how a
score is measured, nor where a card is stored.
"""

ABOUT = {
    "base": """\
The common ancestor of the family: a residual convolutional net of 0.29 M parameters that reads a digit in four ways
(upright, inverted, turned, mirrored), stopped half-way, so that its experts have something left to learn.""",
    "local": """\
An expert of [digits/base](../base): all weights fine-tuned on one way of showing a digit, 100 steps of 64 scans.""",
    "scratch": """\
Trained from an initialisation of its own (seed {seed}) on one way of showing a digit, 150 steps of 64 scans. It
shares no ancestor with the others: averaged with one of them it is at chance, until their neurons are matched and its
activations repaired. That is what it is here to show.""",
}

CARD = """\
---
{front}
---

# digits/{name}

{about}
It is small enough to merge in a blink, and of no use but to show what merging does.

Accuracy in percent on {count} held-out scans, shown in each of the four ways:

| task | accuracy |
|---|---|
{rows}

Input: `pixel_values` of shape (picture, 1, 32, 32): 8×8 scans divided by 16, each pixel repeated 4×4 times.
Made by `assets/train/train_digits.py` from scikit-learn's digits, which are the test part of "Optical Recognition of
Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, CC BY 4.0).
"""


def card(name: str, accuracy: dict[str, float], count: int, seed: int = 0) -> str:
    """The README of the model `name`, with the share of scans read right by task."""
    return CARD.format(
        front=front_matter(name),
        name=name,
        about=ABOUT[kind(name)].format(seed=seed),
        count=count,
        rows="\n".join(f"| {task} | {100 * share:.1f} |" for task, share in accuracy.items()),
    )


def front_matter(name: str) -> str:
    lines = [
        "license: apache-2.0",
        *(["base_model: digits/base"] if kind(name) == "local" else []),
        "library_name: transformers",
        "pipeline_tag: image-classification",
        *["tags:", "- mergelab", "- model-merging", "- digits"],
    ]
    return "\n".join(lines)


def kind(name: str) -> str:
    return "base" if name == "base" else "scratch" if name.startswith("scratch-") else "local"
