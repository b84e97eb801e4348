"""The one error that is the user's to mend. Anything else is a bug, and crashes loudly."""

from collections.abc import Iterable
from difflib import get_close_matches


class MergeError(Exception):
    """Something the person at the screen can mend: what was asked, what was found, what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing sentence for an error about a name: the nearest known name, or all of them."""
    known = sorted(known)
    near = get_close_matches(str(word), known, n=1, cutoff=0.65)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known are: {', '.join(known)}." if known else ""
