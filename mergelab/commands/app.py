"""The command `mergelab app`: the page."""

import argparse

from mergelab.errors import MergeError


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("--port", type=int, help="where to listen (default: the first free one from 7860)")


def run(asked: argparse.Namespace) -> None:
    """Open the page, until it is closed."""
    from mergelab.page import launch  # gradio: seconds to import

    try:
        launch(server_port=asked.port)
    except OSError as error:
        raise MergeError(f"Cannot open the page: {error}") from None
