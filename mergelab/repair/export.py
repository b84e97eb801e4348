"""Writes repaired models: ordinary folders that know nothing of repair, or one file per task beside a body."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from mergelab.errors import MergeError
from mergelab.files.checkpoint import FLOATS, INDEX, Checkpoint
from mergelab.files.digests import sha256_of
from mergelab.files.sources import companions
from mergelab.markdown import code, plain
from mergelab.model import Running, takes_biases, with_biases
from mergelab.repair.fold import Folded, fold
from mergelab.repair.patch import Patch
from mergelab.repair.sites import before_head
from mergelab.repair.statistics import Batch
from mergelab.report import RepairReport

_PAPERS = {"task": ("TACT", "the statistics of this task's expert"), "mean": ("REPAIR", "the mean over all experts")}


def weights_sha256(folder: Path) -> str:
    """One hash of a model's weights: its file's own, or that of the list of its shards' hashes."""
    files = sorted({entry.file for entry in Checkpoint(folder, folder.name).entries.values()})
    digests = [sha256_of(folder / file) for file in files]
    return digests[0] if len(digests) == 1 else "+".join(digest[:8] for digest in digests)


def folded(model: nn.Module, patch: Patch, batch: Batch) -> Folded:
    """`fold`, into a copy with room for the shifts. MergeError if some site has no place in its weights."""
    needs = patch.mode != "rms" and any(one.shift.any() for one in patch.sites.values())
    done = fold(with_biases(model) if needs and not _is_full(model) else model, patch, batch)
    if done.unfolded:
        raise MergeError(
            f"{len(done.unfolded)} of {len(patch.sites)} sites have no place in the weights of {type(model).__name__}, "
            f"'{done.unfolded[0]}' among them: it has no bias there. Use the mode 'rms', which needs none, or keep the "
            "repair beside the model (--sidecar)."
        )
    return done


def takes_shifts(model: nn.Module) -> bool:
    """Whether shifts can be folded into the model's weights, once it has all the biases that its architecture takes."""
    return _is_full(model) or takes_biases(model)


def _is_full(model: nn.Module) -> bool:
    """Whether every linear map before the head has a bias already."""
    return all(module.bias is not None for _, module in before_head(model) if isinstance(module, nn.Linear))


def write_folded(place: Path, merged: Running, source: Path, patch: Patch, batch: Batch, report: RepairReport):
    """Write one task's model as an ordinary folder, in the dtype of the merged one; its report, completed.

    place: a folder that does not exist yet; source: the merged model's own folder, whose tokenizer is copied.
    """
    done = folded(merged.model, patch, batch)
    report = replace(report, unfolded=done.unfolded, difference=done.difference)
    model = done.model.to(_dtype(source))
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise MergeError(f"The repaired '{patch.task}' does not fit into {model.dtype}. Merge in float32 first.")
    place.mkdir(parents=True)
    model.save_pretrained(place)
    for path in (path for path in companions(source) if not (place / path.name).exists()):
        shutil.copyfile(path, place / path.name)
    for path in place.iterdir():
        path.chmod(0o644)
    (place / "repair.json").write_text(report.to_json(), encoding="utf-8")
    (place / "README.md").write_text(_card(source, patch, report), encoding="utf-8")
    return report


def write_body(place: Path, source: Path) -> None:
    """Copy the merged model itself, to stand beside the files of its repairs. place: a folder that exists."""
    files = {entry.file for entry in Checkpoint(source, source.name).entries.values()}
    others = [source / name for name in (*files, INDEX, "README.md", "recipe.yaml")]
    for path in {*companions(source), *(path for path in others if path.is_file())}:
        shutil.copyfile(path, place / path.name)


def write_sidecar(
    place: Path, patch: Patch, report: RepairReport, head: Mapping[str, Tensor] | None = None
) -> RepairReport:
    """Write one task's repair beside its body: `repair-<task>.safetensors` for `Patch.load`, and its report.

    head: a classifier's own head for this task, as `head_of` gives it; it goes into the same file.
    """
    name = re.sub(r"[/\\]+", "-", patch.task)  # it may be all of a source
    patch.save(place / f"repair-{name}.safetensors", head)
    (place / f"repair-{name}.json").write_text(report.to_json(), encoding="utf-8")
    return report


def _dtype(folder: Path) -> torch.dtype:
    """The floating-point type that most of a model's numbers are stored in."""
    sizes: dict[str, int] = {}
    for entry in Checkpoint(folder, folder.name).entries.values():
        if entry.mergeable:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + torch.Size(entry.shape).numel()
    return FLOATS[max(sizes, key=sizes.get)]


def _card(source: Path, patch: Patch, report: RepairReport) -> str:
    name, whose = _PAPERS[patch.target]
    front = {"library_name": "transformers", "tags": ["merge", "mergelab", "repair", name.lower()]}
    before, after = report.ratios
    scores = "\n".join(f"- {who}: {score:.1%}" for who, score in report.scores.items()) or "Not measured."
    sites = "\n".join(f"- {code(site)}" for site in patch.sites)
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {plain(source.name)}, repaired for {plain(patch.task)}

Made with mergelab. {name}: channel by channel, a merged model's activations are given {whose},
in the order of the forward pass; then scale and shift are folded into the weights. The result is an ordinary model.

Mode: {patch.mode}. Samples: {patch.samples} ({patch.tokens} rows). Variance ratio to the expert, before and after:
{before:.3f}, {after:.3f}. Channels dead: {report.dead}, clamped: {report.clamped}, skipped: {report.skipped}.
Largest |hooked - folded| of the outputs in float32: {report.difference:.2g}.

## Right on held-out data

{scores}

A repair carries knowledge of the task by itself: "base, repaired" is the unmerged base with the same repair.

## Sites

{sites}
"""
