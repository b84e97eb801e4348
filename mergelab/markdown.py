"""Other people's words in Markdown: names of models and tensors, notes that quote them; shown, whatever they say.

A link, an image or a tag in them stays text. This room knows Markdown, and nothing of what is said in it.
"""

import re


def plain(text: str) -> str:
    """Words within a line."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("[", "&#91;")


def formula(text: str) -> str:
    """A paragraph with formulas in it: what follows a `_` is set low, what stands in backticks is code.

    Every other sign stands as it is: none of them makes a list, a table or an emphasis.
    """
    parts = " ".join(str(text).split()).split("`")
    return "".join(code(part) if i % 2 else _lowered(part) for i, part in enumerate(parts))


def _lowered(text: str) -> str:
    pieces = re.split(r"_(?:\{([^{}]*)\}|([0-9A-Za-zα-ω]+))", text)  # what is not low, then one of two that are
    low = [f"<sub>{_marked(one or other)}</sub>" for one, other in zip(pieces[1::3], pieces[2::3])]
    return "".join(_marked(plain) + end for plain, end in zip(pieces[::3], [*low, ""]))


def _marked(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|$~-])", r"\\\1", text)


def code(text: str) -> str:
    """A name, in backticks that no backtick in it can end."""
    line = " ".join(str(text).split())
    ticks = _longer(line, "`")
    room = " " * ("`" in line)
    return f"{ticks}{room}{line}{room}{ticks}" if line else ""


def fenced(text: str, kind: str) -> str:
    """Lines as they are, in a fence that none of them can end. text: ends with a line break."""
    fence = _longer(text, "```")
    return f"{fence}{kind}\n{text}{fence}"


def _longer(text: str, ticks: str) -> str:
    """Backticks, one more than there are together in a text."""
    return "`" * max(len(ticks), 1 + max(map(len, re.findall("`+", text)), default=0))
