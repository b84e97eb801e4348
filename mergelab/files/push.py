"""Puts a folder on the Hugging Face Hub, with a login that is given or this machine's own, and that is kept nowhere."""

import re
from pathlib import Path

from mergelab.errors import MergeError
from mergelab.files.sources import hub_failure, is_folder

_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")


def push(folder: str | Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model's or an adapter's folder as `owner/name` (`name` alone: the login's own). Returns its address.

    token: None takes HF_TOKEN, or what `hf auth login` has stored. MergeError if it is refused, or the folder is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    place = Path(folder).expanduser() if is_folder(str(folder)) else None
    if place is None or not any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise MergeError(f"'{folder}' is no folder of a model or an adapter. Name one that mergelab has written.")
    if not any(place.glob("*.safetensors")):
        raise MergeError(f"'{folder}' has no safetensors weights in it.")
    if not _NAME.fullmatch(repo):
        raise MergeError(f"'{repo}' cannot be the name of a model on the Hub. Write OWNER/NAME.")
    try:
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=place, ignore_patterns=[".*"], commit_message="Upload with mergelab"
        )
    except (OSError, ValueError, HTTPError) as error:
        raise MergeError(f"'{repo}' could not be written: {hub_failure(error)}.") from None
    return str(made)
