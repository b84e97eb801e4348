"""Links and examples: a recipe comes back from its link, a broken link is told, an example's pictures are its own."""

import base64
import json
import re
import zlib
from dataclasses import replace

import pytest
from hypothesis import example as given_too
from hypothesis import given, settings
from hypothesis import strategies as st
from making import finished

from mergelab import METHODS, Expert, MergeError, Recipe, inspect, plan
from mergelab.assets import ASSETS, bundled
from mergelab.lab.gallery import FIRST, RECIPES, examples, shipped_analysis
from mergelab.lab.lab import Lab
from mergelab.lab.link import CODE, example_of, recipe_of, words_of
from mergelab.method import STEPS, Choice, Switch
from mergelab.recipes.code import coded, decoded

TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=20)
NAMES = TEXTS.map(str.strip).filter(bool)


def values(setting):
    """What a setting of a method may be: a scalar, a gradient, or filters."""
    knob = setting.knob
    if isinstance(knob, Switch):
        one = st.booleans()
    elif isinstance(knob, Choice):
        one = st.sampled_from(knob.options)
    else:
        one = st.floats(knob.low, knob.high)
    filters = st.tuples(NAMES, one, one).map(lambda f: [{"filter": f[0], "value": f[1]}, {"value": f[2]}])
    return st.one_of(one, st.lists(one, min_size=2, max_size=3), filters)


@st.composite
def recipes(draw):
    """Recipes of every method, with the settings that it allows, and with what only mergelab knows."""
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    known = st.fixed_dictionaries({}, optional={s.name: values(s) for s in method.settings})
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    experts = tuple(Expert(name, draw(st.floats(-2, 2))) for name in names)
    return Recipe(
        draw(NAMES.filter(lambda base: base not in names)),
        experts,
        method.name,
        method.checked(draw(known)),
        dtype=draw(st.sampled_from([None, "bfloat16"])),
        decompose_embeddings=draw(st.booleans()),
        seed=draw(st.integers(0, 2**40)),
        then=draw(st.sampled_from([{}, {name: step.checked({}) for name, step in STEPS.items()}])),
        align=draw(st.sampled_from(["none", "weights"])),
    )


@settings(deadline=None)
@given(recipes())
def test_a_recipe_comes_back_from_its_code_and_from_its_link(recipe):
    assert decoded(coded(recipe)) == recipe
    words = words_of(recipe)
    assert recipe_of(words) == recipe
    assert re.fullmatch(r"[\w~.-]*", words["recipe"], re.ASCII), "a link needs no escaping"


@given(st.floats(1, 100), st.sampled_from(sorted(examples())))
def test_eta_stands_in_a_link_by_itself_wherever_a_recipe_has_one(eta, name):
    recipe = recipe_of({"recipe": name, "eta": f"{eta!r}"})
    assert recipe_of(words_of(recipe)).method == examples()[name].recipe.method
    if recipe.method == "star":
        assert words_of(recipe)["recipe"] == ("" if name == FIRST else name)


def test_what_the_page_opens_with_needs_no_words_and_an_example_its_name():
    assert recipe_of({}) == examples()[FIRST].recipe
    assert words_of(examples()[FIRST].recipe) == {"recipe": "", "eta": ""}
    assert words_of(recipe_of({"eta": "55"})) == {"recipe": "", "eta": "55"}
    assert [words_of(example.recipe)["recipe"] or FIRST for example in examples().values()] == list(examples())
    assert all(example_of(example.recipe) == name for name, example in examples().items())
    assert example_of(recipe_of({"eta": "55"})) is None


def test_a_code_of_many_experts_is_short():
    sources = [name for name in bundled() if name.startswith("numbers/") and "base" not in name]
    recipe = Recipe("numbers/base", tuple(map(Expert, sources)), "ties", {"density": 0.3})
    assert len(sources) >= 12 and len(words_of(recipe)["recipe"]) < 300


def code_of(data):
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return CODE + base64.urlsafe_b64encode(squeezer.compress(text) + squeezer.flush()).decode().rstrip("=")


GOOD = words_of(replace(examples()["numbers-ties"].recipe, seed=7))["recipe"]
HOSTILE = {
    "an unknown name": ("no-such", "a recipe that there is not"),
    "a path": ("../../etc/passwd", "a recipe that there is not"),
    "nothing behind the tilde": (CODE, "cannot be read"),
    "cut short": (GOOD[:-9], "cannot be read"),
    "no base64": (GOOD + "é", "cannot be read"),
    "a bomb": (code_of(b" " * 4_000_000), "cannot be read"),
    "deep": (code_of(b"[" * 60_000), "cannot be read"),
    "not a number": (code_of(b'{"merge_method": NaN}'), "cannot be read"),
    "half a letter": (code_of({"merge_method": "star", "base_model": "\ud800", "models": ["a"]}), "cannot be read"),
    "no UTF-8": (code_of(b"\xff"), "cannot be read"),
    "long": (CODE + "A" * 9_000, "more than 8000"),
    "no recipe": (code_of([1]), "must be a mapping"),
    "an unknown method": (
        code_of({"merge_method": "<script>", "base_model": "a", "models": ["b"]}),
        "There is no merge method",
    ),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_a_broken_link_is_told_in_a_sentence(why):
    name, sentence = HOSTILE[why]
    with pytest.raises(MergeError, match=sentence):
        recipe_of({"recipe": name})


@pytest.mark.parametrize("eta", ["", "x", "nan", "1e999", "-3", "101", "4" * 5000])
def test_an_eta_that_is_none_is_told_too(eta):
    if eta:
        with pytest.raises(MergeError):
            recipe_of({"eta": eta})
    assert recipe_of({"recipe": "numbers-ties", "eta": "55"}) == examples()["numbers-ties"].recipe


@settings(deadline=None)
@given(st.text(max_size=60).map(lambda text: CODE + text) | st.binary(max_size=200).map(code_of))
@given_too(GOOD)
def test_whatever_a_link_says_leads_to_a_recipe_or_to_one_clear_line(name):
    try:
        assert isinstance(recipe_of({"recipe": name}), Recipe)
    except MergeError as error:
        assert str(error).strip()


def test_every_example_has_a_title_a_sentence_and_experts_that_are_shipped():
    assert next(iter(examples())) == FIRST and len(examples()) == len(list(RECIPES.glob("*.yaml"))) >= 10
    assert len({example.title for example in examples().values()}) == len(examples())
    for example in examples().values():
        assert len(example.title) < 40 and example.about.endswith(".")
        assert {example.recipe.base, *(expert.source for expert in example.recipe.experts)} <= bundled().keys()


@pytest.mark.parametrize("name", examples())
def test_the_shipped_analysis_of_an_example_is_what_a_new_one_finds(name):
    recipe = examples()[name].recipe
    shipped, found = shipped_analysis(recipe), finished(inspect(plan(recipe), diagnose=True))
    assert shipped.recipe == json.loads(json.dumps(found.recipe)) and shipped.notes == found.notes
    for old, new in zip(shipped.layers, found.layers, strict=True):
        assert (old.name, old.facts.keys(), old.curves.keys()) == (new.name, new.facts.keys(), new.curves.keys())
        assert plain(old) == pytest.approx(plain(new), rel=2e-3, abs=2e-4), old.name


def plain(layer):
    """All numbers of a layer, in one row."""
    row, left = [], [*layer.facts.values(), *layer.curves.values()]
    while left:
        value = left.pop()
        left.extend(value) if isinstance(value, (list, tuple)) else row.append(value)
    return row


def test_an_example_is_analysed_without_any_work(tmp_path):
    job = Lab(tmp_path, device="cpu").analyse(examples()["numbers-ties"].recipe)
    with pytest.raises(StopIteration) as end:
        next(job)
    assert end.value.value == shipped_analysis(examples()["numbers-ties"].recipe)


def test_the_plotly_that_is_shipped_is_the_one_that_the_python_package_has():
    import plotly

    folder = ASSETS / "vendor"
    ours = (folder / "plotly-cartesian.min.js").read_text(encoding="utf-8")[:200]
    theirs = (ASSETS.parent / plotly.__path__[0] / "package_data" / "plotly.min.js").read_text(encoding="utf-8")[:200]
    version = re.search(r"plotly\.js v([\d.]+)", theirs)[1]
    assert f"v{version}" in ours, f"run `make vendor VERSION={version}`"
    assert "MIT License" in (folder / "LICENSE").read_text(encoding="utf-8")
