"""Numbers with their nouns."""


def counted(number: int, noun: str) -> str:
    """'1 expert', '2 experts', '2 matrices'."""
    return f"{number} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return f"{noun.removesuffix('ix')}ices" if noun.endswith("ix") else f"{noun}s"
