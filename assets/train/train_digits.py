"""Train the `digits` family: small residual convolutional nets that read a digit shown in one of four ways.

    pip install -e . -r assets/train/requirements.txt
    python assets/train/train_digits.py [--out assets/digits]

Takes two minutes of one core and needs no network. Everything is seeded: on one machine a second run gives the same
files, on another the same scores within a few points.

Data     scikit-learn's 1797 scans of 8×8 pixels, 500 of them held out; in training each is moved by up to one pixel.
         A task shows them upright, inverted, turned by 90° or mirrored; the ten labels are always the same.
Base     all four tasks, stopped half-way. Four experts are fine-tuned from it, one a task.
Scratch  five nets, each trained on one task from an initialisation of its own: upright twice, the others once. Their
         hidden channels have nothing in common, and a plain average of any two is at chance.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from digit_cards import card
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import ResNetConfig, ResNetForImageClassification

from mergelab.tasks import TRANSFORMS, enlarged, picture_tasks, right_labels

BATCH = 64
TEST, CALIBRATION = 500, 256  # scans
SEEDS = {"scratch-upright": 101, "scratch-invert": 102, "scratch-rot90": 103, "scratch-mirror": 104}
SEEDS |= {"scratch-upright-2": 105}


@dataclass(frozen=True)
class Course:
    """How to train: the rate rises over `warmup` steps, then falls as a cosine to `floor` of its height."""

    steps: int
    rate: float
    warmup: int
    floor: float

    def rate_at(self, step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return min(1, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


BASE = Course(steps=75, rate=3e-3, warmup=1, floor=1.0)
EXPERT = Course(steps=100, rate=5e-4, warmup=10, floor=0.0)
SCRATCH = Course(steps=150, rate=3e-3, warmup=1, floor=0.0)


def scans() -> dict[str, Tensor]:
    """scikit-learn's 1797 scans in three parts; a part's images are uint8 (scan, 8, 8)."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(data.images).to(torch.uint8)[order], torch.tensor(data.target).to(torch.uint8)[order]
    training = len(order) - TEST
    spans = {"training": slice(0, training), "calibration": slice(0, CALIBRATION), "test": slice(training, None)}
    both = {"images": images, "labels": labels}
    return {f"{part}.{what}": both[what][span].clone() for part, span in spans.items() for what in both}


def new_model() -> ResNetForImageClassification:
    config = ResNetConfig(
        num_channels=1,
        embedding_size=32,
        hidden_sizes=[64, 128],
        depths=[1, 1],
        layer_type="basic",
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    return ResNetForImageClassification(config)


def shifted(images: Tensor) -> Tensor:
    """Each scan moved by up to one pixel in either direction."""
    moves = torch.randint(0, 3, (len(images), 2)).tolist()
    wide = pad(images, (1, 1, 1, 1))
    return torch.stack([image[y : y + 8, x : x + 8] for image, (y, x) in zip(wide, moves)])


def train(model: ResNetForImageClassification, tasks: tuple[str, ...], course: Course, data: dict[str, Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, course.rate_at)
    model.train()
    for _ in range(course.steps):
        chosen = torch.randint(0, len(data["training.labels"]), (BATCH,))
        pictures = enlarged(shifted(data["training.images"][chosen])).chunk(len(tasks))
        images = torch.cat([TRANSFORMS[task](some) for task, some in zip(tasks, pictures)])
        labels = data["training.labels"][chosen].long()
        cross_entropy(model(pixel_values=images).logits, labels, label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


def seed_everything(seed: int) -> None:
    """One thread as well: the order of sums, and so the result, depends on how many there are."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def train_all(out: Path, data: dict[str, Tensor]) -> None:
    seed_everything(0)
    model = new_model()
    train(model, tuple(TRANSFORMS), BASE, data)
    model.half().save_pretrained(out / "base")
    for seed, task in enumerate(TRANSFORMS, start=1):
        seed_everything(seed)
        model = load(out / "base")
        train(model, (task,), EXPERT, data)
        model.half().save_pretrained(out / task)
    for name, seed in SEEDS.items():
        seed_everything(seed)
        model = new_model()
        train(model, (name.removeprefix("scratch-").removesuffix("-2"),), SCRATCH, data)
        model.half().save_pretrained(out / name)


def load(folder: Path) -> ResNetForImageClassification:
    """A model as shipped, in float32."""
    return ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)


def scores(folder: Path) -> dict[str, float]:
    """The share of the test scans that are read right, by task."""
    model = load(folder).eval()
    return {n: round(right_labels(model, task.test).float().mean().item(), 4) for n, task in picture_tasks().items()}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data = scans()
    kept = {name: tensor for name, tensor in data.items() if not name.startswith("training")}
    source = "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI, CC BY 4.0; via scikit-learn"
    save_file(kept, out / "scans.safetensors", metadata={"source": source})
    train_all(out, data)
    measured = {name: scores(out / name) for name in ["base", *TRANSFORMS, *SEEDS]}
    for name, accuracy in measured.items():
        (out / name / "README.md").write_text(card(name, accuracy, TEST, SEEDS.get(name, 0)), encoding="utf-8")
        print(f"{name:18}", *(f"{task} {100 * share:5.1f} " for task, share in accuracy.items()))
    (out / "scores.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for file in out.rglob("*.*"):
        file.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the digits family.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "digits")
    main(parser.parse_args().out)
