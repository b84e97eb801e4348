"""Where an expert comes from, as far as its files say: does it plausibly descend from this base?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mergelab.files.vocabulary import differing_rows
from mergelab.planning.opened import OpenedExpert
from mergelab.recipes.varying import NO_YAML

# What a fine-tune may change in its configuration without being another model.
_FREE = {"dtype", "torch_dtype", "transformers_version", "use_cache", "vocab_size", "pad_token_id", "eos_token_id"}
_FREE |= {"bos_token_id", "tie_word_embeddings", "_name_or_path", "attention_dropout", "max_position_embeddings"}


def front_matter(folder: Path) -> dict[str, Any]:
    """The front matter of a folder's model card; empty if it has none that can be read."""
    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)
        data = yaml.safe_load(front)
    except (OSError, *NO_YAML):
        return {}
    return data if isinstance(data, dict) else {}


def named_bases(expert: OpenedExpert) -> tuple[str, ...]:
    """The models that an expert's own files name as what it was made from."""
    if expert.adapter and expert.checkpoint is None:
        return (expert.adapter.base_name,) if expert.adapter.base_name else ()
    named = front_matter(expert.checkpoint.folder).get("base_model") if expert.checkpoint else None
    return tuple(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str) and name)


def differences(expert: OpenedExpert, base: Any) -> dict[str, tuple[Any, Any]]:
    """Keys of config.json that say that two models are not of one kind -> (the base's value, the expert's)."""
    if expert.checkpoint is None or not isinstance(base.config, dict):
        return {}
    ours, theirs = base.config, expert.checkpoint.config
    plain = (key for key in ours.keys() & theirs.keys() - _FREE if isinstance(ours[key], (int, float, str)))
    return {key: (ours[key], theirs[key]) for key in sorted(plain) if ours[key] != theirs[key]}


def kinship(expert: OpenedExpert, base: Any) -> str:
    """What speaks for an expert's having been fine-tuned from the base, in a few words."""
    said = [f"says it was made from {name}" for name in named_bases(expert)[:1]]
    if expert.checkpoint is base:
        return "is the base"
    if expert.adapter:
        said.insert(0, f"all of its {len(expert.adapter.pairs) + len(expert.adapter.saved)} modules fit the base")
    if expert.checkpoint is not None:
        same = sum(base.entries[n].shape == e.shape for n, e in expert.checkpoint.entries.items() if n in base.entries)
        said.insert(0, f"{same} of {len(base.entries)} tensors fit by name and shape")
        said += ["same configuration"] if expert.checkpoint.config and not differences(expert, base) else []
        rows = differing_rows(base.folder, expert.checkpoint.folder)
        said += ["same tokenizer"] if rows and not rows[1] else []
    return "; ".join(said)


def doubts(expert: OpenedExpert, base: Any, source: str) -> Iterator[str]:
    """What speaks against it, a sentence each; what `plan` says by itself is left out."""
    for key, (ours, theirs) in list(differences(expert, base).items())[:5]:
        yield f"'{key}' is {theirs!r} in the configuration of expert '{expert.name}', and {ours!r} in the base's."
    named = named_bases(expert) if expert.checkpoint is not None and expert.checkpoint is not base else ()
    last = source.partition("@")[0].rstrip("/").rpartition("/")[2]
    if named and all(name.rpartition("/")[2] not in (last, Path(base.folder).name) for name in named):
        yield f"The card of expert '{expert.name}' says it was made from '{named[0]}'; the base is '{source}'."
