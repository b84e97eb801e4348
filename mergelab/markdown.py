"""Other people's words in Markdown: names of models and tensors, notes that quote them; shown, whatever they say.

A link, an image or a tag in them stays text. This room knows Markdown, and nothing of what is said in it.
"""

import re


def plain(text: str) -> str:
    """Words within a line."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("[", "&#91;")


def escaped(text: str) -> str:
    """A paragraph with every sign as it stands: none of them makes a list, a formula, a table or an emphasis."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|$~-])", r"\\\1", " ".join(str(text).split()))


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
