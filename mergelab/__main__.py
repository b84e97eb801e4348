"""Where the command line begins: the weights that it names are hashed while torch is imported, which takes a second."""

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import yaml

from mergelab.files import digests
from mergelab.files.sources import is_folder


def program() -> NoReturn:
    """Run one verb as a process of its own.

    It ends at once when all is said: to take apart what torch has made would cost a tenth of a second. Not where a
    launcher has started several, which say goodbye to one another.
    """
    status = main()
    if "WORLD_SIZE" in os.environ:
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # it was never open, or nobody listens any more
            stream.flush()
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["merge"] and "WORLD_SIZE" not in os.environ:  # several processes share them out
        with suppress(Exception):  # whatever is wrong with the recipe is said by those who read it whole
            digests.begin(_weights(arguments[1:]))
    from mergelab.commands import line

    return line.main(arguments)


def _weights(arguments: Sequence[str]) -> Iterator[Path]:
    """The weight files in the folders that a recipe among the arguments names, as far as a glance shows."""
    for recipe in (Path(word) for word in arguments if word.endswith((".yaml", ".yml"))):
        for source in _texts(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
            for folder in filter(is_folder, source.split("+")):
                yield from sorted(Path(folder).expanduser().glob("*.safetensors"))


def _texts(data: object) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    for part in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _texts(part)


if __name__ == "__main__":
    program()
