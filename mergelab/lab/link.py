"""A recipe as the words of a link, and back: an example's name or a code, and η, which is moved most, by itself."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergelab.errors import MergeError, did_you_mean
from mergelab.lab.gallery import FIRST, examples, with_all_settings
from mergelab.method import method_named
from mergelab.recipes.code import coded, decoded
from mergelab.recipes.mergekit_yaml import number
from mergelab.recipes.recipe import Recipe
from mergelab.recipes.varying import elsewhere

CODE = "~"  # what a code begins with, and no example's name
_ETA = 40.0  # of a code


def words_of(recipe: Recipe) -> dict[str, str]:
    """The words `recipe` and `eta` of a link; each is empty where it goes without saying."""
    full = with_all_settings(recipe)
    plain, eta = _with_eta(full, _ETA), _eta(full)
    same = [example for example in examples().values() if _with_eta(example.recipe, _ETA) == plain]
    usual = _eta(same[0].recipe) if same else _ETA
    name = same[0].name if same else CODE + coded(_shortened(plain))
    return {
        "recipe": "" if name == FIRST else name,
        "eta": "" if eta is None or eta == usual else repr(eta).removesuffix(".0"),
    }


def recipe_of(words: Mapping[str, str]) -> Recipe:
    """The recipe that a link's words say, with all settings; MergeError in words if they are not a link's."""
    name = words.get("recipe") or FIRST
    if name.startswith(CODE):
        recipe = decoded(name.removeprefix(CODE))
    elif name in examples():
        recipe = examples()[name].recipe
    else:
        raise MergeError(f"The link names a recipe that there is not. {did_you_mean(name, examples())}")
    recipe = with_all_settings(recipe)
    return _with_eta(recipe, _number(words["eta"])) if words.get("eta") else recipe


def example_of(recipe: Recipe) -> str | None:
    """The name of the example that this recipe is."""
    return next((name for name, example in examples().items() if example.recipe == recipe), None)


def _shortened(recipe: Recipe) -> Recipe:
    """The recipe without the settings that are its method's own."""
    usual = method_named(recipe.method).checked({})
    return replace(recipe, settings={k: v for k, v in recipe.settings.items() if usual[k] != v})


def _eta(recipe: Recipe) -> float | None:
    """STAR's η where no filter is; None under another method, and where it is a gradient."""
    eta = elsewhere(recipe.settings["eta"]) if recipe.method == "star" else None
    return eta if isinstance(eta, float) else None


def _with_eta(recipe: Recipe, eta: float) -> Recipe:
    """The recipe with another η there; the same recipe where it has none of that kind."""
    if _eta(recipe) is None:
        return recipe
    old: Any = recipe.settings["eta"]
    new = [_elsewhere(entry, eta) for entry in old] if isinstance(old, list) else eta
    return replace(recipe, settings=method_named("star").checked({**recipe.settings, "eta": new}))


def _elsewhere(entry: dict[str, Any], eta: float) -> dict[str, Any]:
    return entry | {"value": eta} if entry.get("filter", "*") == "*" else entry


def _number(text: str) -> float:
    try:
        return number(float(text), "The link's eta")
    except ValueError:
        raise MergeError("The link's eta must be a number.") from None
