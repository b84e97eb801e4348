"""The rules of the house: who imports whom, what the README says, one version, one list of dependencies, one style."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mergelab
from mergelab import METHODS

HOUSE = Path(__file__).resolve().parent.parent
README, CHANGELOG, MAP = HOUSE / "README.md", HOUSE / "CHANGELOG.md", HOUSE / "CONTRIBUTING.md"

# Every room of mergelab/, top to bottom, and the rooms that it may import. A room imports itself freely.
ROOMS = {
    "__main__": "commands files",
    "commands": "start page words plots __init__ lab table scores step repair merging planning recipes report files "
    "errors",
    "page": "start words lessons plots lab table scores step repair limits method recipes report markdown assets "
    "errors",
    "lessons": "plots scores repair planning method recipes report maths assets",
    "plots": "words scores recipes report maths assets",
    "__init__": "api",
    "api": "verbs start step merging planning method recipes report errors",
    "verbs": "lab scores step recipes model files errors",
    "lab": "table scores step repair limits merging planning method recipes report align tasks model files "
    "assets errors",
    "table": "errors",
    "scores": "words step merging planning method recipes report markdown model files maths errors",
    "step": "",
    "repair": "merging planning recipes report markdown tasks model files maths assets errors",
    "limits": "words recipes assets errors",
    "start": "",
    "merging": "words planning method recipes report markdown align model files maths errors",
    "planning": "words methods method recipes align files maths errors",
    "methods": "method maths errors",
    "method": "setting report maths errors",
    "setting": "recipes errors",
    "recipes": "errors",
    "report": "",
    "markdown": "",
    "align": "tasks symmetry model files maths assets config errors",
    "tasks": "model assets",
    "symmetry": "config maths errors",
    "model": "config files words errors",
    "files": "maths assets errors",
    "maths": "",
    "assets": "",
    "config": "errors",
    "errors": "",
    "words": "",
}
ONLY_IN = {"gradio": "page", "plotly": "plots", "transformers": "model"}
MODULES = sorted((HOUSE / "mergelab").rglob("*.py"))


def room_of(path):
    return path.relative_to(HOUSE / "mergelab").parts[0].removesuffix(".py")


def imports_of(path):
    """The full names that a file imports, wherever in it they stand."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_room_imports_only_what_is_below_it(path):
    room = room_of(path)
    assert room in ROOMS, (
        f"{path.name} has no place in the house yet: give '{room}' a line in ROOMS, and say what it may import"
    )
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("mergelab.")}
    rooms = {name if name in ROOMS else "__init__" for name in ours} - {room}  # a public name: mergelab.merge is none
    assert rooms <= set(ROOMS[room].split()), f"{room} may not import {rooms - set(ROOMS[room].split())}"


def test_the_map_of_the_rooms_goes_only_downward():
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(other) > order.index(room) for other in below.split()), room
    assert {room_of(path) for path in MODULES} == set(ROOMS), "a room of the map is gone, or a new one is not on it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_each_large_library_has_one_room_and_maths_has_torch_and_one_file_of_numpy(path):
    outside = {name.split(".")[0] for name in imports_of(path)}
    assert all(room_of(path) == ONLY_IN[library] for library in outside & ONLY_IN.keys())
    if room_of(path) == "maths":
        numpy = {"numpy"} if path.name == "selection.py" else set()
        assert outside <= {"torch", "mergelab"} | numpy | sys.stdlib_module_names


def test_importing_mergelab_brings_in_no_large_library():
    code = f"import sys, mergelab; print(*({set(ONLY_IN)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_public_names_exist_once_each_and_others_do_not():
    assert all(hasattr(mergelab, name) for name in mergelab.__all__)
    assert len(set(mergelab.__all__)) == len(mergelab.__all__)
    assert {*mergelab.__all__} <= {*dir(mergelab)}
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        mergelab.merg  # noqa: B018


def test_all_methods_are_known_to_whoever_asks_for_them_first():
    code = "from mergelab import METHODS, STEPS; print(len(METHODS), len(STEPS))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(METHODS)), str(len(mergelab.STEPS))]


def pyproject(pattern):
    return re.search(pattern, (HOUSE / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]


def test_spaces_installs_what_the_package_depends_on():
    listed = re.findall(r'"([^"]+)"', pyproject(r"^dependencies = \[(.*?)^\]"))
    tried = (HOUSE / "requirements.txt").read_text(encoding="utf-8").split()
    wider = [line.replace("torch>=2.8,<2.14", "torch>=2.8,<3") for line in tried]  # nobody's torch is taken away
    assert wider == listed


def test_the_version_is_one_and_the_changelog_has_it():
    assert mergelab.__version__ == pyproject(r'^version = "(.*?)"')
    assert (
        re.search(r"^## \[?v?(\d[\w.]*)", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)[1]
        == mergelab.__version__
    )


def files_of_the_house():
    """Every file that git tracks, or would if asked."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=HOUSE, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no clone of the repository")
    return [Path(line) for line in done.stdout.splitlines() if (HOUSE / line).exists()]


def mapped():
    """The paths in the map: a row of files belongs to the folder in bold above it."""
    folder = ""
    for row in re.findall(r"^\| (.*?) \|", MAP.read_text(encoding="utf-8").split("## The map")[1], re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        if row.startswith("**"):
            (folder,) = names
        else:
            yield from (f"{folder}{name}" for name in names)


def test_the_map_has_a_line_for_every_file_and_for_no_other():
    lines, files = list(mapped()), {str(path) for path in files_of_the_house()}
    code = {path for path in files if path.endswith((".py", ".js", ".css")) and "assets/vendor" not in path}
    top = {path for path in files if "/" not in path and not path.startswith(".")}
    trivial = {path for path in code if path.endswith("__init__.py") and path.count("/") > 1}
    assert not (code | top) - trivial - {*lines}
    assert not [path for path in lines if not (HOUSE / path).exists()]
    assert len({*lines}) == len(lines)


def test_the_readme_names_every_folder_of_the_package():
    text = README.read_text(encoding="utf-8")
    rooms = {path.parent.name for path in MODULES if path.parent.parent == HOUSE / "mergelab"}
    assert not [room for room in rooms if f"`mergelab/{room}/`" not in text]


def test_the_readme_runs_on_spaces_and_names_every_method():
    text = README.read_text(encoding="utf-8")
    front = text.split("---")[1]
    assert re.search(r"^sdk: gradio$", front, re.MULTILINE) and re.search(r"^app_file: app\.py$", front, re.MULTILINE)
    assert not [name for name, method in METHODS.items() if f"`{name}`" not in text or method.title not in text]


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(check):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *check, "--quiet", "."], cwd=HOUSE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
