"""The command `mergelab push`: a folder onto the Hub."""

import argparse

from mergelab.files.push import push


def add(verb: argparse.ArgumentParser) -> None:
    """Add its words."""
    verb.add_argument("folder", metavar="FOLDER")
    verb.add_argument("repo", metavar="OWNER/NAME")
    verb.add_argument("--private", action="store_true", help="if the repository is made anew")


def run(asked: argparse.Namespace) -> None:
    """Push, and print where it is now."""
    print(push(asked.folder, asked.repo, private=asked.private))
