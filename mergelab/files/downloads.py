"""What has come from the Hub and lies in this machine's cache: bounded, the model unused for longest goes first."""

import shutil
from collections.abc import Collection


def make_room(size: float, most: float, spared: Collection[str]) -> None:
    """Remove downloaded models until so many bytes fit below a bound beside what stays.

    spared: the names of the models whose bytes these are; what of them is here already is not counted twice.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    named = {name.partition("@")[0] for name in spared}
    others = sorted((repo for repo in cache.repos if repo.repo_id not in named), key=lambda repo: repo.last_accessed)
    taken = sum(repo.size_on_disk for repo in others)
    for repo in others:
        if taken + size <= most:
            return
        shutil.rmtree(repo.repo_path, ignore_errors=True)  # not by revision: two models may have one of the same name
        taken -= repo.size_on_disk
