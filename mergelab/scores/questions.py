"""Prompts with expected answers, from a person: pasted, or from a .txt, .csv or .jsonl file.

This room knows the three formats and what can be wrong with a line. It knows no model and no score.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mergelab.errors import MergeError, did_you_mean

MEASURES = ("exact match", "perplexity")
OWN = "own prompts"  # the task of lines that name none
MOST, LONGEST = 2000, 8000  # questions, and characters of one text
_COLUMNS = ("prompt", "answer", "task")
FORMATS = (
    "A line is 'prompt => answer', with ' => task' after it if you like; or prompt, answer and task with tabs between"
)

Line = tuple[int, str, str, str]  # its number, prompt, answer, task


@dataclass(frozen=True)
class Questions:
    """What is asked for one task. measure: one of MEASURES. ends: an exact match must end where the answer does."""

    task: str
    pairs: tuple[tuple[str, str], ...]  # (prompt, answer)
    measure: str = "exact match"
    ends: bool = True


def questions_from(text: str, kind: str = "txt", measure: str = "exact match", ends: bool = True) -> list[Questions]:
    """The questions in a text, one Questions per task, in the order in which the tasks appear.

    kind: txt, csv or jsonl. For perplexity a line may be a bare text, without a prompt.
    MergeError says which line is wrong, what was found there, and what is wanted.
    """
    readers = {"txt": _from_lines, "csv": _from_csv, "jsonl": _from_jsonl}
    if kind not in readers:
        raise MergeError(f"Prompts come as .txt, .csv or .jsonl, not as '.{kind}'.")
    if measure not in MEASURES:
        raise MergeError(f"There is no measure '{measure}'. {did_you_mean(measure, MEASURES)}")
    tasks: dict[str, list[tuple[str, str]]] = {}
    for count, (number, prompt, answer, task) in enumerate(readers[kind](text), start=1):
        _check(number, prompt, answer, measure, count)
        tasks.setdefault(task or OWN, []).append((prompt, answer))
    if not tasks:
        raise MergeError(f"There is no prompt in it. {FORMATS}.")
    return [Questions(task, tuple(pairs), measure, ends) for task, pairs in tasks.items()]


def questions_in(path: str | Path, measure: str = "exact match", ends: bool = True) -> list[Questions]:
    """The questions in a file; its ending says how it is written."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise MergeError(f"Cannot read the prompts '{path.name}': {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise MergeError(f"'{path.name}' is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    try:
        return questions_from(text, path.suffix.lower().lstrip("."), measure, ends)
    except MergeError as error:
        raise MergeError(f"'{path.name}': {error}") from None


def _check(number: int, prompt: str, answer: str, measure: str, count: int) -> None:
    if not answer.strip():
        raise MergeError(f"Line {number} has no answer: found {_quoted(prompt)}. {FORMATS}.")
    if measure == "exact match" and not prompt.strip():
        raise MergeError(f"Line {number} is only a text, with no prompt: {_quoted(answer)}. Score it by perplexity.")
    if len(prompt) + len(answer) > LONGEST:
        raise MergeError(f"Line {number} has {len(prompt) + len(answer)} characters; at most {LONGEST} are scored.")
    if count > MOST:
        raise MergeError(f"There are more than {MOST} prompts. Take fewer: the interval hardly narrows with more.")


def _from_lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split("\t") if "\t" in line else line.split(" => ")
        if len(parts) > 3:
            raise MergeError(f"Line {number} has {len(parts)} parts: found {_quoted(line)}. {FORMATS}.")
        yield (number, *_parts(parts))


def _parts(parts: list[str]) -> tuple[str, str, str]:
    if len(parts) == 1:  # a text to be told the perplexity of
        return "", parts[0].strip(), ""
    prompt, answer, task = (*parts, "")[:3]
    return prompt.strip(), answer.strip(), task.strip()


def _from_csv(text: str) -> Iterator[Line]:
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        if "answer" not in names:
            found = f"found {_quoted(header)}"
            raise MergeError(f"Line 1 must name the columns prompt, answer and, if you like, task; {found}.")
        _check_names(1, names)
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(names):
                found = f"{len(row)} cells, and line 1 has {len(names)}"
                raise MergeError(f"Line {rows.line_num} has {found}. Put texts with a '{separator}' into quotes.")
            cells = dict(zip(names, row))
            yield (rows.line_num, *(cells.get(name, "").strip() for name in _COLUMNS))
    except csv.Error as error:
        raise MergeError(f"Line {rows.line_num} is not valid CSV: {error}.") from None


def _from_jsonl(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MergeError(f"Line {number} is not valid JSON: {error}. Found {_quoted(line)}.") from None
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            wanted = 'an object of texts, as {"prompt": "…", "answer": "…"}'
            raise MergeError(f"Line {number} must be {wanted}: found {_quoted(line)}.")
        _check_names(number, entry)
        yield (number, *(entry.get(name, "").strip() for name in _COLUMNS))


def _check_names(number: int, names: Iterable[str]) -> None:
    for name in names:
        if name not in _COLUMNS:
            raise MergeError(f"Line {number} has an unknown column '{name[:40]}'. {did_you_mean(name, _COLUMNS)}")


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return f"'{text[:60]}…'" if len(text) > 60 else f"'{text}'"
