"""The limits: read from the environment or refused in a sentence, held by every verb, and documented in the README."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hub import TOKEN, surroundings
from making import finished, recipe_of

from mergelab import Expert, MergeError, Recipe
from mergelab.files import sources
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab
from mergelab.limits import Limits, variable
from mergelab.repair.outcome import Trial

README = Path(__file__).resolve().parent.parent / "README.md"
PUBLIC = {"MERGELAB_PUBLIC": "1"}
PAIR = Recipe("numbers/base", (Expert("numbers/french"), Expert("numbers/german-lora")), "star", {"eta": 50.0})


def test_a_person_alone_has_no_bounds_but_on_memory_and_a_space_has_all():
    assert Limits.read({}) == Limits() and not Limits().public
    space = Limits.read({"SPACE_ID": "somebody/lab"})
    assert space.public and None not in vars(space).values()
    assert not Limits.read({"SPACE_ID": "somebody/lab", "MERGELAB_PUBLIC": "off"}).public


@pytest.mark.parametrize("name", [f.name for f in fields(Limits) if f.name != "public"])
def test_each_limit_is_read_from_its_variable(name):
    assert getattr(Limits.read({variable(name): "3"}), name) == 3
    for wrong in ("0", "-2", "many", "nan", "inf", "1e999"):
        with pytest.raises(MergeError, match=variable(name)):
            Limits.read({variable(name): wrong})
    if getattr(Limits(), name) is None:
        assert getattr(Limits.read({**PUBLIC, variable(name): "none"}), name) is None


def test_a_word_that_is_neither_yes_nor_no_and_a_limit_that_does_not_exist_are_refused():
    with pytest.raises(MergeError, match="MERGELAB_PUBLIC must be 1 or 0, not 'perhaps'"):
        Limits.read({"MERGELAB_PUBLIC": "perhaps"})
    with pytest.raises(MergeError, match="Did you mean 'MERGELAB_MAX_EXPERTS'"):
        Limits.read({"MERGELAB_MAX_EXPRTS": "3"})


def test_the_readme_has_a_row_for_each_limit_with_its_defaults():
    rows = re.findall(r"^\| `(MERGELAB_\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", README.read_text(encoding="utf-8"), re.M)
    alone, public = Limits(), Limits.read(PUBLIC)
    found = {name: (says, one, many) for name, says, one, many in rows}
    assert list(found) == [variable(f.name) for f in fields(Limits)]
    for f in fields(Limits):
        assert found[variable(f.name)] == (
            f.metadata["says"],
            shown(getattr(alone, f.name)),
            shown(getattr(public, f.name)),
        )


def shown(value):
    if value is None:
        return "none"
    return {True: "1", False: "0"}[value] if isinstance(value, bool) else f"{value:,}".replace(",", " ")


HOSTILE = ["/etc", "~", "~root", ".", "..", "./x", "../numbers/base", "numbers/../../etc", "mergelab", "assets/numbers"]
HOSTILE += ["file:///etc", "C:\\Windows", "org/name/../..", "a/b+/etc", "numbers/base+../x", "org/name@../x", "\0", ""]
HOSTILE += ["http://example.com/x", "a b", "org/<script>", "x" * 10_000]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: repr(source[:20]))
def test_in_public_mode_no_path_is_looked_at_wherever_it_stands(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_downloaded", lambda *given: pytest.fail("it was fetched"))
    monkeypatch.chdir(README.parent)
    limits, good = Limits.read(PUBLIC), Expert("numbers/french")
    lab = Lab(tmp_path, device="cpu", limits=limits)
    named = [Recipe(source, (good,), "linear"), Recipe("numbers/base", (good, Expert(source)), "linear")]
    named += [Recipe("numbers/base", (good,), "linear", tokenizer_source=source)]
    verbs = [lab.check, lab.analyse, lab.merge, lambda recipe: lab.sweep(recipe, "experts", [1.0], [])]
    verbs += [lambda recipe: lab.scoreboard(recipe, {}), lambda recipe: RepairLab(lab).tell(Trial(recipe))]
    for recipe in named:
        for verb in verbs:
            with pytest.raises(MergeError, match="On this page a model is a bundled one"):
                finished(verb(recipe))
    for base in ("numbers/base", source):
        with pytest.raises(MergeError):
            lab.model_folder(source, base)


def test_the_same_paths_are_opened_where_the_mode_is_off(trio):
    assert finished(Lab(device="cpu").merge(recipe_of(*trio))).folder.is_dir()


def test_bundled_experts_pass_and_too_many_do_not(tmp_path):
    lab = Lab(tmp_path, device="cpu", limits=Limits.read({**PUBLIC, "MERGELAB_MAX_EXPERTS": "1"}))
    with pytest.raises(MergeError, match="2 experts; this page merges at most 1"):
        lab.check(PAIR)
    for recipe in (PAIR, replace(PAIR, tokenizer_source="base")):
        assert Lab(tmp_path, limits=Limits.read(PUBLIC)).opened(recipe).names


def test_a_template_of_ones_own_is_code_and_is_refused_in_public():
    with pytest.raises(MergeError, match="chat template"):
        Limits.read(PUBLIC).check(replace(PAIR, chat_template="{% for i in range(9) %}{% endfor %}"))


def test_longer_answers_than_are_allowed_are_refused(tmp_path):
    lab = Lab(tmp_path, device="cpu", limits=Limits(max_tokens=8))
    with pytest.raises(MergeError, match="at most 8"):
        list(lab.answers([lab.model_folder("numbers/base", "numbers/base")], "french: 21 =", tokens=9))


SIZES = """
from making import finished, recipe_of
from mergelab import MergeError
from mergelab.lab.lab import Lab
from mergelab.limits import Limits
lab = Lab(device="cpu", limits=Limits.read())
lab.opens_to_others()
for verb in (lab.analyse, lab.merge, lambda recipe: iter([lab.model_folder(recipe.base, recipe.base)])):
    try:
        finished(verb(recipe_of("org/base", "org/expert-1", "org/expert-2")))
        print("merged")
    except MergeError as error:
        print(error)
"""


def on_the_hub(trio, hub, tmp_path, organisation="org", **environment):
    """What SIZES prints where the trio is on the Hub; and which weight files were asked for from their beginning."""
    import shutil
    import subprocess
    import sys

    root, address, asked, _ = hub
    for folder in trio:
        shutil.copytree(folder, root / organisation / folder.name, dirs_exist_ok=True)
    env = surroundings(address, tmp_path / "cache", **environment) | {
        "PYTHONPATH": f"{README.parent}:{README.parent}/tests"
    }
    script = SIZES.replace("org/", f"{organisation}/")
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = [path for path, span in asked if path.endswith(".safetensors") and not (span or "").startswith("bytes=0-")]
    return done.stdout.splitlines(), whole


def test_a_model_that_is_too_large_is_refused_before_its_weights_are_fetched(trio, hub, tmp_path):
    said, fetched = on_the_hub(trio, hub, tmp_path, MERGELAB_PUBLIC="1", MERGELAB_MAX_PARAMETERS="10")
    assert len(said) == 3 and all("this page takes models of at most" in line for line in said) and not fetched
    said, fetched = on_the_hub(trio, hub, tmp_path, MERGELAB_PUBLIC="1", MERGELAB_MAX_DISK_GB="1e-7")
    assert len(said) == 3 and all("would download and write" in line for line in said) and not fetched
    assert on_the_hub(trio, hub, tmp_path, MERGELAB_PUBLIC="1")[0][:2] == ["merged", "merged"]


def test_in_public_mode_the_hub_is_asked_without_the_login_of_this_machine(trio, hub, tmp_path):
    said, _ = on_the_hub(trio, hub, tmp_path, "secret", MERGELAB_PUBLIC="1", HF_TOKEN=TOKEN)
    assert all("has no such model, or it is private" in line for line in said)
    said, _ = on_the_hub(trio, hub, tmp_path, "secret", MERGELAB_PUBLIC="0", HF_TOKEN=TOKEN)
    assert said[:2] == ["merged", "merged"]


def test_downloads_of_a_page_for_many_are_bounded_and_those_of_a_person_alone_stay(trio, hub, tmp_path):
    sizes = [path.stat().st_size for folder in trio for path in folder.iterdir()]
    room = sum(sizes) + 2 * (trio[0] / "model.safetensors").stat().st_size + 100  # one recipe's, and less than two

    def kept(organisation, public):
        limit = {"MERGELAB_PUBLIC": public, "MERGELAB_MAX_DISK_GB": str(room / 1e9)}
        said, _ = on_the_hub(trio, hub, tmp_path, organisation, **limit)
        assert said[:2] == ["merged", "merged"], said
        blobs = [path for path in (tmp_path / "cache/hub").glob("models--*/blobs/*") if path.is_file()]
        return sum(path.stat().st_size for path in blobs), [str(path).split("--")[1] for path in blobs]

    assert kept("one", "1")[0] == sum(sizes)
    bytes_of_two, owners = kept("two", "1")
    assert bytes_of_two <= room and owners.count("two") == len(sizes) and owners.count("one") < len(sizes)
    assert kept("three", "0")[0] == bytes_of_two + sum(sizes) > room
