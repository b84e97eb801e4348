"""Finds the folder that a source names: a local folder, a bundled model, or a model on the Hugging Face Hub.

From the Hub come configuration, safetensors and tokenizer files only: pickles and Python code are never downloaded.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from mergelab.assets import bundled
from mergelab.errors import MergeError, did_you_mean

Found = TypeVar("Found")
# What stands beside the weights, and goes with them into a merged model.
COMPANIONS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "LICENSE*")
FETCHED = ("*.safetensors", "README.md", *COMPANIONS)  # of a model on the Hub; nothing in its folders
# Of the weights alone: where they lie, how they came about.
_NOT_COMPANIONS = ("*.index.json", "adapter_config.json", "report.json", "alignment.json", "repair.json")
_NOT_COMPANIONS += ("repair-*.json",)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def folder_of(source: str) -> Path:
    """The folder that a source names; downloads it first if only the Hub has it. MergeError if nobody has it."""
    return folder_here(source) or from_hub(source, _downloaded)


def folder_here(source: str) -> Path | None:
    """The folder on this machine that a source names; None if only the Hub can have it. MergeError if nobody can."""
    try:
        local = Path(source).expanduser()
        folder, file = local.is_dir() and source != "", local.is_file()
        lost = local.is_symlink() and not local.exists()
    except PermissionError:
        raise _locked(source) from None
    except (OSError, RuntimeError, ValueError):  # too long for a path, or the home of nobody
        raise MergeError(f"'{source[:80]}' cannot be the name of a folder.") from None
    if folder and not os.access(local, os.R_OK | os.X_OK):
        raise _locked(source)
    if folder:
        return local
    if source in bundled():
        return bundled()[source]
    if file:
        raise MergeError(f"'{source}' is a file. A model is a folder with config.json and safetensors weights.")
    if lost:
        raise MergeError(f"'{source}' is a symbolic link that leads to nothing. Name the folder itself.")
    if source.startswith((".", "/", "~")):
        if "@" in source and _is_here(source.rpartition("@")[0]):
            raise MergeError(f"'{source}': a folder has no revisions; only a model on the Hub takes '@'.")
        raise MergeError(f"There is no folder '{source}'. {_nearby(source)}".rstrip())
    return None


def _locked(source: str) -> MergeError:
    return MergeError(f"'{source}' cannot be looked into: permission denied. Give this user the right to read it.")


def companions(folder: Path) -> Iterator[Path]:
    """What stands beside a model's weights and goes with them: configuration, tokenizer, licence."""
    for path in sorted({path for pattern in COMPANIONS for path in folder.glob(pattern)}):
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COMPANIONS):
            yield path


def is_same_source(one: str, other: str) -> bool:
    """Whether two sources name one model: by one word, or by two names of one folder on this machine."""
    if one == other:
        return True
    try:
        folders = [folder_here(source) for source in (one, other)]
        return None not in folders and folders[0].resolve() == folders[1].resolve()
    except (MergeError, OSError, RuntimeError):  # said by those who open it
        return False


def ask_as_anybody() -> None:
    """From now on the Hub is asked without this machine's own login, so that nobody sees what it may see."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True


def _is_here(source: str) -> bool:
    """Whether a source is a folder on this machine, or a bundled model."""
    return source in bundled() or is_folder(source)


def is_folder(path: str) -> bool:
    """Whether a path, which may begin with ~, is that of a folder; False for what cannot be a path."""
    try:
        return path != "" and Path(path).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, or the home of nobody
        return False


def revision_of(folder: Path) -> str | None:
    """The commit of a folder that came from the Hub; None for any other."""
    snapshot = "snapshots" in folder.parts[:-1] and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if snapshot else None


def commit_here(source: str) -> str:
    """The commit that a name on the Hub was last seen to mean, if its files are on this machine; else nothing."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = source.partition("@")
    if not _HUB_ID.fullmatch(name):
        return ""
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or None)
        found = found or try_to_load_from_cache(name, "adapter_config.json", revision=revision or None)
    except ValueError:  # no name that the Hub could have
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""


def on_the_hub(name: str, file: str, revision: str) -> str:
    """The address of one file of a model."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file, revision=revision)


def from_hub(source: str, fetch: Callable[[str, str | None], Found]) -> Found:
    """What `fetch` makes of a source's name and revision; its failures as MergeErrors that say what to do."""
    from huggingface_hub.errors import HTTPError  # of the client that this version of the Hub uses

    name, _, revision = source.partition("@")
    if not _HUB_ID.fullmatch(name):
        raise MergeError(f"There is no folder '{source}'. {_nearby(source)}".rstrip())
    try:
        return fetch(name, revision or None)
    except (OSError, ValueError, HTTPError) as error:
        why = _what_failed(error, revision)
        raise MergeError(f"There is no folder '{source}' here, and {why}. {_nearby(source)}".rstrip()) from error


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and most runs need no Hub

    return Path(snapshot_download(name, revision=revision, allow_patterns=[*FETCHED], ignore_patterns="*/*"))


def _what_failed(error: Exception, revision: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return "it is no name that the Hub could have"
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub has no revision '{revision}' of it"
    if isinstance(error, GatedRepoError):
        return "the Hub gives it only to those who ask: accept its terms there, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no such model, or it is private: log in with `hf auth login`, or set HF_TOKEN"
    cause = error.__cause__ or error  # a failed look into the cache hides the reason for it
    if isinstance(cause, HfHubHTTPError):
        return f"the Hub answered {cause.response.status_code}"
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is too full to download it"
    return f"the Hub could not be reached ({type(cause).__name__})"


def hub_failure(error: Exception) -> str:
    """Why the Hub did not take what was sent, as the end of a sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return "nobody is logged in. Use `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        login = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write there"
        return f"the Hub answered {status}. {login}" if status in (401, 403) else f"the Hub answered {status}"
    if isinstance(error, HFValidationError) or str(error).startswith("Invalid metadata"):
        return f"it does not take that: {' '.join(str(error).split())[:300]}"
    return f"the Hub could not be reached ({type(error).__name__})"


def _nearby(source: str) -> str:
    """A sentence with the nearest name of a folder or a bundled model; empty if none is near."""
    parent = Path(source).expanduser().parent
    try:
        siblings = [str(path) for path in parent.iterdir() if path.is_dir()]
    except OSError:
        siblings = []
    hint = did_you_mean(source, [*siblings, *bundled()])
    return hint if hint.startswith("Did") else ""
