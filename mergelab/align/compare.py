"""Which alignment to take: each is tried, and the average of the two models is judged on calibration data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mergelab.align.alignment import HOW, Alignment, alignment
from mergelab.align.pair import Tensors
from mergelab.errors import MergeError
from mergelab.model import built, outputs


@dataclass(frozen=True)
class Compared:
    """One alignment and the loss of the average that it leads to."""

    alignment: Alignment
    loss: float

    @property
    def how(self) -> str:
        """none, weights or activations."""
        return self.alignment.how


def compared(
    reference: Tensors,
    expert: Tensors,
    config: Mapping[str, Any],
    data: list[Mapping[str, Tensor]],
    *,
    build: Callable[[Tensors], nn.Module] | None = None,
    **how: Any,
) -> tuple[Compared, ...]:
    """None, weights and activations, the best first. how: as `alignment` takes it. MergeError without data.

    The loss is the cross-entropy of the averaged model's answers with the mean of the two models' own (it needs no
    labels), over all positions that are not padding. A batch with `labels` (one for each answer) is judged by those.
    """
    if not data:
        raise MergeError("Comparing alignments needs calibration data: prompts or images to run the models on.")
    make = build or (lambda tensors: built(config, tensors))
    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in data]
    own = [make(reference), make(expert)]
    targets = [_targets(own, batch, given) for batch, given in zip(inputs, data)]
    found = []
    for way in HOW:
        made = alignment(reference, expert, config, way, inputs, build=build, **how)
        model = make(_average(reference, made.aligned(expert)))
        losses = [_loss(outputs(model, batch), *target) for batch, target in zip(inputs, targets)]
        found.append(Compared(made, sum(losses) / len(losses)))
    return tuple(sorted(found, key=lambda one: one.loss))


def _average(a: Tensors, b: Tensors) -> dict[str, Tensor]:
    return {name: (a[name] + b[name]) / 2 if a[name].is_floating_point() else a[name] for name in a}


def _targets(
    models: list[nn.Module], batch: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """For each answer the distribution to meet, and whether it counts."""
    answers = [outputs(model, batch).float() for model in models]
    if "labels" in given and given["labels"].shape == answers[0].shape[:-1]:
        labels = given["labels"]
        return nn.functional.one_hot(labels.clamp(min=0), answers[0].shape[-1]).float(), labels >= 0
    mask = given.get("decoder_attention_mask" if "decoder_input_ids" in given else "attention_mask")
    fits = mask is not None and mask.shape == answers[0].shape[:-1]
    counts = mask.bool() if fits else torch.ones(answers[0].shape[:-1], dtype=torch.bool)
    return sum(answer.softmax(-1) for answer in answers) / len(answers), counts


def _loss(answer: Tensor, target: Tensor, counts: Tensor) -> float:
    entropy = -(target * answer.float().log_softmax(-1)).sum(-1)
    return float(entropy[counts].mean())
