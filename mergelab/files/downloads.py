"""What has come from the Hub and lies in this machine's cache: bounded, the model unused for longest goes first."""

from collections.abc import Collection


def make_room(size: float, most: float, spared: Collection[str]) -> None:
    """Remove downloaded models until so many bytes more fit below a bound. spared: names that stay."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return
    taken, named = cache.size_on_disk, {name.partition("@")[0] for name in spared}
    for repo in sorted(cache.repos, key=lambda repo: repo.last_accessed):
        if taken + size <= most:
            return
        if repo.repo_id not in named:
            cache.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
            taken -= repo.size_on_disk
