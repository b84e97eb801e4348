"""How an expert's own weights fit the base's: names, shapes, dtypes, vocabulary; and a view of them that does.

What to do where they do not fit is the recipe's to say (`vocabulary`, `missing`); the default is to refuse. Nothing is
read here but headers, configuration and tokenizers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergelab.errors import brief, did_you_mean
from mergelab.files.checkpoint import Checkpoint, Entry
from mergelab.files.vocabulary import differing_rows, embedding_among, has_row_per_token, tokens_of

_MANY = 0.01  # tokenizers that differ in more than this share of their common rows are two tokenizers
_HINTS = 3  # missing tensors for which the nearest name is looked for
_OPTIONS = (
    "Under 'mergelab' a recipe may say 'vocabulary: base' (its embeddings and head are left out) or "
    "'vocabulary: common' (the rows that both have are merged)."
)


@dataclass
class Fit:
    """What was found. renamed: base's name -> expert's. rows: of these tensors only so many first rows are its own."""

    renamed: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Fitted(Mapping[str, Tensor]):
    """An expert's weights by the base's names and in its shapes; where it has none of its own, they are the base's."""

    def __init__(self, own: Checkpoint, base: Checkpoint, fit: Fit):
        self.own, self.base, self.fit = own, base, fit
        self.folder, self.source, self.config, self.stamps = own.folder, own.source, own.config, own.stamps
        theirs = {name: own.entries.get(fit.renamed.get(name, name)) for name in {*own.entries, *fit.renamed}}
        found = {name: entry for name, entry in theirs.items() if entry and name not in fit.rows}
        self.entries: dict[str, Entry] = found | {name: base.entries[name] for name in fit.rows}

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some rows of it."""
        has, called = self.fit.rows.get(name), self.fit.renamed.get(name, name)
        if has is None:
            return self.own.read(called, rows)
        theirs = self.base.read(name, rows)
        start = rows.start or 0 if rows else 0
        if not (count := max(0, min(has - start, len(theirs) if theirs.dim() else 0))):
            return theirs
        mine = self.own.read(called, slice(start, start + count))
        wide = torch.promote_types(mine.dtype, theirs.dtype)
        return torch.cat([mine.to(wide), theirs[count:].to(wide)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def fit(expert: str, own: Checkpoint, base: Checkpoint, names: Sequence[str], vocabulary: str, missing: str) -> Fit:
    """How a checkpoint fits the tensors of the base that are to be merged. expert: what to call it."""
    found = Fit()
    _find_names(expert, own, base, names, missing, found)
    for name in names:
        if name not in found.rows:
            _check_tensor(expert, name, own.entries[found.renamed.get(name, name)], base, vocabulary, found)
    _check_tokens(expert, own, base, names, vocabulary, found)
    _lead(own, base, names, found)
    return found


def _lead(own: Checkpoint, base: Checkpoint, names: Sequence[str], found: Fit) -> None:
    """Begin the first problem with the verdict, where most tensors fit neither by name nor by shape."""
    mine = {name: entry for name in names if (entry := own.entries.get(found.renamed.get(name, name)))}
    fit = sum(_is_alike(name, entry, base.entries[name]) for name, entry in mine.items())
    if found.problems and fit * 2 < len(names):
        verdict = f"'{own.source}' is no fine-tune of '{base.source}': {fit} of {len(names)} tensors fit."
        found.problems[0] = f"{verdict} {found.problems[0]}"


def _is_alike(name: str, entry: Entry, wanted: Entry) -> bool:
    """Whether two shapes are those of one tensor; a table may be of another vocabulary."""
    return entry.shape == wanted.shape or (has_row_per_token(name) and entry.shape[1:] == wanted.shape[1:])


def _find_names(expert: str, own: Checkpoint, base: Checkpoint, names: Sequence[str], missing: str, found: Fit) -> None:
    """Fill `renamed`, and `rows` with 0 for tensors that the expert lacks and may lack."""
    found.renamed |= _under_a_prefix(own, names)
    if found.renamed:
        one, other = next(iter(found.renamed.items()))
        found.notes.append(f"Expert '{expert}' names its tensors otherwise: its '{other}' is the base's '{one}'.")
    embedding = embedding_among(own.entries)
    for name in names:
        if name in own.entries or name in found.renamed:
            continue
        if name.endswith("lm_head.weight") and own.config.get("tie_word_embeddings") is not False and embedding:
            found.renamed[name] = embedding
            found.notes.append(f"Expert '{expert}' ties its head to its embeddings: they stand for its '{name}'.")
        else:
            _note_missing(expert, name, own, base, missing, found)
        if name not in found.renamed:
            found.rows[name] = 0
    untied = base.config.get("tie_word_embeddings") is True and own.config.get("tie_word_embeddings") is False
    if untied and any(name.endswith("lm_head.weight") for name in own.entries):
        found.notes.append(
            f"Expert '{expert}' has a head of its own; the base ties its head to its embeddings: left out."
        )


def _note_missing(expert: str, name: str, own: Checkpoint, base: Checkpoint, missing: str, found: Fit) -> None:
    if missing == "base":
        found.notes.append(f"Expert '{expert}' has no '{name}': there it is the base.")
        return
    hint = ""
    if len(found.problems) < _HINTS:  # each is looked for among all names
        hint = did_you_mean(name, own.entries.keys() - base.entries.keys())
    hint = hint if hint.startswith("Did") else f"Was it fine-tuned from '{base.source}'?"
    found.problems.append(
        f"Expert '{expert}' has no tensor '{name}' that the base has. {hint} With 'missing: base' under 'mergelab' "
        "it is the base there."
    )


def _under_a_prefix(own: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """Names that differ by a prefix alone ('bert.encoder…' and 'encoder…'); empty unless that explains most of them."""
    absent = [name for name in names if name not in own.entries]
    if len(absent) * 2 <= len(names):
        return {}
    for other in own.entries:
        for name in absent[-1:]:
            if other.endswith(f".{name}"):
                prefix = other.removesuffix(name)
                pairs = {n: prefix + n for n in absent if prefix + n in own.entries}
            elif name.endswith(f".{other}"):
                prefix = name.removesuffix(other)
                pairs = {n: n.removeprefix(prefix) for n in absent if n.removeprefix(prefix) in own.entries}
            else:
                continue
            if len(pairs) * 2 > len(absent):
                return pairs
    return {}


def _check_tensor(expert: str, name: str, entry: Entry, base: Checkpoint, vocabulary: str, found: Fit) -> None:
    mine, wanted = list(entry.shape), list(base.entries[name].shape)
    if not entry.mergeable:
        said = f"'{name}' of expert '{expert}' is {entry.dtype}"
        codes = f"{said}: quantised weights cannot be merged. Take the unquantised model."
        other = f"{said}, and the base's is {base.entries[name].dtype}: only floats are merged with floats."
        found.problems.append(codes if entry.holds_codes else f"{other} Was it fine-tuned from '{base.source}'?")
    elif mine != wanted:
        said = f"'{name}' is {mine} in expert '{expert}', but {wanted} in the base '{base.source}'."
        tokens = has_row_per_token(name) and mine[1:] == wanted[1:]
        if not tokens:
            found.problems.append(f"{said} Only models of one shape can be merged.")
        elif vocabulary == "refuse":
            found.problems.append(f"{said} Its vocabulary is another one. {_OPTIONS}")
        else:
            _limit_rows(expert, name, mine[0], wanted[0], vocabulary, found)


def _limit_rows(expert: str, name: str, mine: int, wanted: int, vocabulary: str, found: Fit) -> None:
    found.rows[name] = min(mine, wanted) if vocabulary == "common" else 0
    if vocabulary == "base":
        found.notes.append(f"'{name}' of expert '{expert}' has {mine} rows, the base {wanted}: left out.")
    else:
        rest = f"the last {mine - wanted} of its own are left out" if mine > wanted else "the rest are the base's alone"
        found.notes.append(f"'{name}' of expert '{expert}': its first {min(mine, wanted)} rows are merged, {rest}.")


def _check_tokens(
    expert: str, own: Checkpoint, base: Checkpoint, names: Sequence[str], vocabulary: str, found: Fit
) -> None:
    """Compare what the rows of the tables mean."""
    tables = [name for name in names if has_row_per_token(name) and found.rows.get(name) != 0]
    difference = differing_rows(base.folder, own.folder) if tables else None
    if difference is None or not difference[1]:
        return
    common, rows = difference
    mine, theirs = tokens_of(own.folder) or {}, tokens_of(base.folder) or {}
    first, whose = rows[0], f"in expert '{expert}', and {brief(theirs[rows[0]])} in the base"
    said = f"Row {first} of the embeddings is {brief(mine[first])} {whose}"
    if len(rows) <= _MANY * common:
        found.notes.append(f"{said}; {len(rows)} of {common} rows mean another token.")
    elif vocabulary == "base":
        found.rows |= dict.fromkeys(tables, 0)
        found.notes.append(f"{said}, so {', '.join(tables)} of this expert are left out.")
    else:
        found.problems.append(
            f"{said}: {len(rows)} of {common} rows mean another token, so merging them makes gibberish. With "
            "'vocabulary: base' under 'mergelab' its embeddings and head are left out."
        )


def fitted(own: Checkpoint, base: Checkpoint, found: Fit) -> Checkpoint | Fitted:
    """The expert's weights as the base would have them."""
    return Fitted(own, base, found) if found.renamed or found.rows else own


def only_theirs(own: Checkpoint, base: Checkpoint, found: Fit) -> set[str]:
    """The tensors of an expert that the base has no place for."""
    return set(own.entries) - set(base.entries) - set(found.renamed.values())
