"""What is let in: recipes that ask for no more than the limits allow; found out before anything large is downloaded."""

from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from mergelab.assets import bundled
from mergelab.errors import MergeError
from mergelab.files.checkpoint import entries_of
from mergelab.files.downloads import make_room
from mergelab.files.headers import download_size, headers_of
from mergelab.limits import Limits, sources
from mergelab.planning.check import check
from mergelab.recipes.recipe import Recipe


def admit(recipe: Recipe, limits: Limits) -> None:
    """MergeError if a recipe asks for too much. Of models on the Hub only headers and sizes are read for that."""
    limits.check(recipe)
    if limits.max_parameters is None and limits.disk is None:
        return
    parts = dict.fromkeys(part.strip() for source in sources(recipe) for part in source.split("+"))
    strange = [part for part in parts if part not in bundled()]
    if not strange:
        return
    found = check(recipe)
    if found.problems:
        raise MergeError(found.problems[0])
    for model in found.models:
        _check_parameters(model.source, model.parameters, limits)
    size = sum(map(download_size, strange))
    _check_size("This recipe", 2 * found.estimate.written + size, limits)  # 2: and zipped
    _make_room(size, strange, limits)


def admit_source(source: str, limits: Limits) -> None:
    """The same of one model on its own, to be prompted or scored."""
    limits.check_source(source)
    if limits.max_parameters is None and limits.disk is None:
        return
    strange = [part for part in source.split("+") if part not in bundled()]
    for part in strange:
        with TemporaryDirectory(prefix="mergelab-") as scratch:
            files = headers_of(part, Path(scratch)).glob("*.safetensors")
            shapes = [entry.shape for file in files for entry in entries_of(file, part).values()]
        _check_parameters(part, sum(map(prod, shapes)), limits)
        _check_size(f"'{part}'", download_size(part), limits)
    _make_room(sum(map(download_size, strange)), strange, limits)


def bound_downloads(recipe: Recipe, limits: Limits) -> None:
    """Let older downloads go, if what a look at a recipe has fetched is too much."""
    parts = [part.strip() for source in sources(recipe) for part in source.split("+")]
    _make_room(0, [part for part in parts if part not in bundled()], limits)


def _make_room(size: float, names: list[str], limits: Limits) -> None:
    """Of a page that many share the downloads are bounded; those of a person alone are theirs."""
    if limits.public and limits.disk is not None and names:
        make_room(size, limits.disk, names)


def _check_parameters(source: str, parameters: int, limits: Limits) -> None:
    if limits.max_parameters is not None and parameters > limits.max_parameters:
        large = f"'{source}' has {parameters / 1e6:,.4g} million parameters"
        raise MergeError(f"{large}; this page takes models of at most {limits.max_parameters / 1e6:,.4g} million.")


def _check_size(what: str, size: float, limits: Limits) -> None:
    if limits.disk is not None and size > limits.disk:
        room = f"this page has room for {limits.max_disk_gb:g} GB a recipe"
        raise MergeError(f"{what} would download and write {size / 1e9:.3g} GB; {room}.")
