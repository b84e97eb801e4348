"""The tokenizer files of a merged model: whose they are, and which chat template goes with them. None is run."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mergelab.errors import MergeError
from mergelab.files.checkpoint import read_json
from mergelab.files.vocabulary import TOKENIZER, differing_rows, tokens_of

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_PATTERNS = (TOKENIZER, CONFIG, TEMPLATE, "chat_template.json", "special_tokens_map.json", "added_tokens.json")
_PATTERNS += (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece*",
    "*.tiktoken",
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files in a folder that make its tokenizer."""
    return sorted({path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()})


def template_of(folder: Path) -> str | None:
    """A model's chat template: its own file, or a line of the tokenizer's configuration; None if it has none."""
    try:
        return (folder / TEMPLATE).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        inside = read_json(folder / CONFIG).get("chat_template") if (folder / CONFIG).is_file() else None
    return inside.strip() or None if isinstance(inside, str) else None


def chosen_template(wanted: str | None, folders: Sequence[Path]) -> str | None:
    """What a recipe's `chat_template` comes to: its text, or of 'auto' the template that most folders have."""
    if wanted != "auto":
        return wanted
    found = Counter(template for folder in folders if (template := template_of(folder)))
    return found.most_common(1)[0][0] if found else None


def check_tokenizer(source: str, folder: Path, base: Path, rows: int | None) -> None:
    """MergeError if another model's tokenizer does not go with the base's embeddings. rows: how many these have."""
    if not tokenizer_files(folder):
        raise MergeError(f"tokenizer_source '{source}' has no tokenizer files.")
    different = differing_rows(base, folder)
    if different and len(different[1]) > 0.01 * different[0]:
        raise MergeError(
            f"tokenizer_source '{source}' means other tokens than the base by {len(different[1])} of {different[0]} "
            "rows of the embeddings: the merged model would not understand it. Use 'base'."
        )
    if rows and (tokens := tokens_of(folder)) and max(tokens) >= rows:
        found = f"has a token for row {max(tokens)}, but the embeddings have {rows} rows"
        raise MergeError(f"tokenizer_source '{source}' {found}. Use 'base', or the tokenizer of another model.")


def write_tokenizer(folder: Path, source: Path | None, template: str | None) -> None:
    """Put a source's tokenizer in place of the folder's (None: leave it), and a chat template in place of its own."""
    if source is not None:
        for path in tokenizer_files(folder):
            path.unlink()
        for path in tokenizer_files(source):
            shutil.copyfile(path, folder / path.name)
    if template is not None:
        (folder / TEMPLATE).write_bytes(template.encode("utf-8"))
        if (folder / CONFIG).is_file():
            config = {key: value for key, value in read_json(folder / CONFIG).items() if key != "chat_template"}
            (folder / CONFIG).write_bytes((json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
