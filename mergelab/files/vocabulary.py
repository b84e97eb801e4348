"""Vocabularies: which tensors have a row per token, and whether two tokenizers mean the same by the same row."""

import filecmp
import re
from pathlib import Path
from typing import Any

from mergelab.files.checkpoint import read_json

TOKENIZER = "tokenizer.json"
_ROW_PER_TOKEN = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|lm_head|embed_out)\.(weight|bias)$"
    r"|^embed\.weight$|^output\.weight$|predictions\.(decoder\.weight|decoder\.bias|bias)$"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\.weight$")


def has_row_per_token(name: str) -> bool:
    """Whether a tensor of that name is a table of tokens: embeddings, or an output head."""
    return bool(_ROW_PER_TOKEN.search(name))


def embedding_among(names: Any) -> str | None:
    """The input embeddings among the names of a model's tensors; None if no name says so."""
    return next((name for name in names if _EMBEDDING.search(name)), None)


def vocabulary_of(folder: Path) -> dict[str, int] | None:
    """Token -> row by the folder's tokenizer.json, without added tokens; None if it has none, or does not say."""
    if not (folder / TOKENIZER).is_file():
        return None
    return {token: row for row, token in _listed(read_json(folder / TOKENIZER)).items()} or None


def tokens_of(folder: Path) -> dict[int, str] | None:
    """Row -> token by the folder's tokenizer.json; None if it has none, or one that does not say."""
    if not (folder / TOKENIZER).is_file():
        return None
    data = read_json(folder / TOKENIZER)
    tokens, added = _listed(data), data.get("added_tokens") or []
    extra = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    tokens |= {entry["id"]: str(entry.get("content")) for entry in extra if type(entry.get("id")) is int}
    return tokens or None


def _listed(data: dict[str, Any]) -> dict[int, str]:
    """Row -> token by the model of a tokenizer: a mapping, or of Unigram a list of [token, score]."""
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        return {i: str(entry[0]) for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    items = vocabulary.items() if isinstance(vocabulary, dict) else ()
    return {row: token for token, row in items if type(row) is int}


def differing_rows(one: Path, other: Path) -> tuple[int, list[int]] | None:
    """How many rows two folders' tokenizers have in common, and those of them that mean another token.

    None if one of them does not say what its rows mean.
    """
    if (one / TOKENIZER).is_file() and (other / TOKENIZER).is_file():
        if filecmp.cmp(one / TOKENIZER, other / TOKENIZER, shallow=False):
            return 1, []
        mine, theirs = tokens_of(one), tokens_of(other)
        if mine and theirs:
            common = sorted(mine.keys() & theirs.keys())
            return len(common), [row for row in common if mine[row] != theirs[row]]
    return None
