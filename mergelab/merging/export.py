"""A model as a LoRA adapter of its base: the best approximation of every matrix's change at a rank, and what it costs.

With Δ = W - W_0 and U_r its leading left singular vectors: B = U_r, A = U_rᵀ Δ, and so B A = U_r U_rᵀ Δ, the nearest
matrix of rank r (Eckart and Young). Written as peft reads it, with lora_alpha = r, so that nothing is scaled.
"""

import json
import re
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mergelab.errors import MergeError, broken
from mergelab.files.adapter import is_adapter
from mergelab.files.checkpoint import Checkpoint
from mergelab.files.sources import folder_of
from mergelab.files.stamp import check_unchanged
from mergelab.markdown import code, plain
from mergelab.maths.inner import finite, norm
from mergelab.maths.spectral import factors
from mergelab.merging.card import shown_source
from mergelab.merging.output import new_folder
from mergelab.model import in_memory
from mergelab.planning.fit import Fit, Fitted, fit, fitted, only_theirs
from mergelab.planning.opened import opened_base, tied_heads, widened
from mergelab.planning.plan import is_matrix, is_table, names_to_merge

_WITH_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")  # of these models: stored as (in, out)
# What a class of transformers does -> peft's word for it.
_TASKS = {
    re.compile(r"ForCausalLM$|LMHeadModel$"): "CAUSAL_LM",
    re.compile(r"ForSequenceClassification$"): "SEQ_CLS",
    re.compile(r"ForTokenClassification$"): "TOKEN_CLS",
    re.compile(r"ForQuestionAnswering$"): "QUESTION_ANS",
    re.compile(r"ForConditionalGeneration$"): "SEQ_2_SEQ_LM",
    re.compile(r"(?<!DoubleHeads)(?<!EncoderDecoder)Model$"): "FEATURE_EXTRACTION",
}


@dataclass(frozen=True)
class LoraReport:
    """What was exported. rank: the highest of a matrix, at most what was asked. errors: tensor -> ‖Δ - B A‖ / ‖Δ‖, 0…1.
    left_out: what changed or only the model has and is not in the adapter, with the reason. notes: on names and tokens.
    """

    model: str
    base: str
    rank: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values(), default=0.0)


def export_lora(model: str, base: str, out: str | Path, rank: int) -> Generator[tuple[str, float], None, LoraReport]:
    """Write `model` as an adapter of `base` to the new folder `out`. Yields each matrix with its error.

    MergeError if the two do not fit, or nothing differs.
    """
    check_rank(rank)
    folder = folder_of(model)
    if is_adapter(folder):
        raise MergeError(
            f"'{model}' is an adapter already. Name a full model, or merge the adapter into its base first."
        )
    start, own = opened_base(base), Checkpoint(folder, model)
    names = names_to_merge(start)
    found = fit(Path(model).name, own, start, names, "refuse", "refuse")
    if found.problems:
        raise MergeError(found.problems[0])
    end = fitted(own, start, found)
    tensors: dict[str, Tensor] = {}
    called = in_memory(start.config, names)  # which is what peft goes by
    ranks, errors, left_out = {}, {}, _without_a_place(own, start, found)
    with new_folder(out) as folder:
        for name in names:
            if why := _placeless(name, start):
                left_out |= _described(name, why, start, end)
                continue
            delta = _change(name, start, end)
            if not delta.any():
                continue
            if not delta.float().any():
                left_out |= _described(name, "too small for F32, which adapters are written in", start, end)
                continue
            delta = delta.T if _is_conv1d(name, start) else delta
            a, b, errors[name] = _pair(name, delta, rank)
            module, ranks[name] = f"base_model.model.{called[name].removesuffix('.weight')}", len(a)
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            yield name, errors[name]
        if not tensors:
            raise MergeError(f"No matrix of '{model}' differs from '{base}': there is nothing to export.")
        report = LoraReport(model, base, min(rank, max(ranks.values())), ranks, errors, left_out, tuple(found.notes))
        check_unchanged({**end.stamps, **start.stamps})
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_papers(folder, report, start, called)
    return report


def check_rank(rank: int) -> None:
    """MergeError for a rank that no adapter can have."""
    if type(rank) is not int or rank < 1:
        raise MergeError(f"The rank of an adapter must be a whole number, at least 1, not {rank!r}.")


def _without_a_place(own: Checkpoint, base: Checkpoint, found: Fit) -> dict[str, str]:
    """The model's tensors that no change of a matrix of the base stands for, each with the reason."""
    extra = only_theirs(own, base, found) - {*tied_heads(own)}
    left_out = dict.fromkeys(sorted(extra), "the base has no such tensor")
    if own.config.get("tie_word_embeddings") is False:
        left_out |= {n: "the base ties its head to its embeddings" for n in tied_heads(base) if n in own}
    for name, entry in base.entries.items():
        if not entry.mergeable and name in own and not torch.equal(base[name], own[name]):
            left_out[name] = f"{entry.dtype}, no floating-point weights"
    return left_out


def _is_conv1d(name: str, base: Checkpoint) -> bool:
    """Whether a matrix lies as (in, out); all others are those of linear layers, (out, in)."""
    return base.config.get("model_type") in _WITH_CONV1D and bool(_CONV1D.search(name))


def _task_type(config: Mapping[str, Any]) -> str | None:
    """Peft's word for what a model does, by its class; None if it has none for that, or the class is not said."""
    classes = config.get("architectures")
    name = str(classes[0]) if isinstance(classes, list) and classes else ""
    task = next((task for ending, task in _TASKS.items() if ending.search(name)), None)
    needed = {"SEQ_2_SEQ_LM": "is_encoder_decoder", "FEATURE_EXTRACTION": "vocab_size"}  # else it is one of pictures
    return task if task not in needed or config.get(needed[task]) else None


def _change(name: str, base: Checkpoint, model: Checkpoint | Fitted) -> Tensor:
    """The model minus the base in float64; MergeError if one of them is not finite, or it is too large for float32."""
    start, end = (tensor.double() for tensor in _both(name, base, model))
    change = end - start
    if not finite(change.float()):
        raise _too_large(name)
    return change


def _both(name: str, base: Checkpoint, model: Checkpoint | Fitted) -> tuple[Tensor, Tensor]:
    """A tensor of the base and of the model, widened; MergeError if one of them is not finite."""
    start, end = widened(base[name]), widened(model[name])
    for tensor, whose in ((start, f"the base '{base.source}'"), (end, f"the model '{model.source}'")):
        if not finite(tensor):
            raise broken(name, whose)
    return start, end


def _too_large(name: str) -> MergeError:
    return MergeError(f"The change of '{name}' does not fit into F32, as adapters are written. Keep the full model.")


def _placeless(name: str, base: Checkpoint) -> str:
    """Why a tensor is none that LoRA holds; empty if it is one."""
    head = name.endswith("lm_head.weight")
    if not (name.endswith(".weight") and is_matrix(base.entries[name].shape)):
        return "no matrix of a linear layer"
    return "a table of embeddings or positions" if is_table(name) and not head else ""


def _pair(name: str, delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A (r, in) and B (out, r) in float32, and the relative error of B A; MergeError if A or B is not finite."""
    found = factors(delta, lambda values: rank)
    vectors = found.vectors[:, :rank]
    b, a = (vectors, vectors.T @ delta) if found.left else (delta @ vectors, vectors.T)
    b, a = b.float().contiguous(), a.float().contiguous()
    if not (finite(a) and finite(b)):
        raise _too_large(name)
    return a, b, float(torch.linalg.norm(delta - b.double() @ a.double()) / torch.linalg.norm(delta))


def _described(name: str, why: str, base: Checkpoint, model: Checkpoint | Fitted) -> dict[str, str]:
    """Why a tensor is left out, and how much of it that is; nothing if it has not changed."""
    start, end = _both(name, base, model)
    if not (change := end - start).any():
        return {}
    return {name: f"{why}; its change is {norm(change) / max(norm(start), 1e-30):.2g} of its size"}


def _write_papers(folder: Path, report: LoraReport, base: Checkpoint, called: Mapping[str, str]) -> None:
    task = _task_type(base.config)
    modules = {called[name].removesuffix(".weight"): rank for name, rank in report.ranks.items()}
    other = {module: rank for module, rank in modules.items() if rank != report.rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        **({"task_type": task} if task else {}),
        "base_model_name_or_path": report.base,
        "r": report.rank,
        "lora_alpha": report.rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(modules),
        "fan_in_fan_out": any(_is_conv1d(name, base) for name in report.ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    _write(folder / "adapter_config.json", json.dumps(config, indent=2))
    _write(folder / "report.json", json.dumps(asdict(report), indent=1))
    _write(folder / "README.md", _card(report))


def _card(report: LoraReport) -> str:
    left = "\n".join(f"- {code(name)}: {plain(why)}" for name, why in report.left_out.items()) or "Nothing."
    return f"""---
base_model: {json.dumps(shown_source(report.base))}
library_name: peft
tags: [lora, mergelab]
---

# {code(Path(report.model).name)} as a LoRA adapter of rank {report.rank}

Made with mergelab from the difference of two models. The largest relative error of a matrix's change is
{report.worst:.2g}; report.json has them all.

## Changed, and not in this adapter

{left}"""


def _write(path: Path, text: str) -> None:
    path.write_bytes((text + "\n").encode("utf-8"))
