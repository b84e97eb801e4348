"""The one error that is the user's to mend. Anything else is a bug, and crashes loudly."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


class MergeError(Exception):
    """Something the person at the screen can mend: what was asked, what was found, what to do."""


def broken(name: str, whose: str) -> MergeError:
    """The error for a tensor that is not finite. whose: the model, as in "the base 'x'"."""
    return MergeError(f"'{name}' of {whose} holds NaN or an infinity. It is broken: take another checkpoint of it.")


def brief(value: object) -> str:
    """A value in an error message: of what is long, deep or its own part, only the beginning."""
    try:
        return _BRIEF.repr(value).replace("\n", " ")
    except ValueError:  # a whole number with too many digits to write
        return "a number with thousands of digits"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing sentence for an error about a name: the nearest known name, or all of them."""
    known = sorted(known)
    near = get_close_matches(_word(word), known, n=1, cutoff=0.65)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known are: {', '.join(known)}." if known else ""


def _word(word: object) -> str:
    return word[:100] if isinstance(word, str) else brief(word)
