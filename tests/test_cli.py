"""The command line: `merge` and `inspect`, with exit status 0, or 1 and one line that says why."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from making import recipe_of, tiny, write_model
from safetensors.torch import load_file

from mergelab import Report, __version__
from mergelab.__main__ import main
from mergelab.commands.line import VERBS
from mergelab.table import check_places, written_to


@pytest.fixture
def recipe(trio, tmp_path):
    """A recipe's path; its base and two experts lie beside it."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_of(*trio, method="star").to_yaml())
    return path


def failed(capsys, *arguments):
    """The one line that a failing command says."""
    assert main([str(argument) for argument in arguments]) == 1
    line = capsys.readouterr().err
    assert line.startswith("mergelab: ") and line.count("\n") == 1, line
    return line


def test_merge_writes_a_folder_and_says_its_hash(recipe, tmp_path, capsys):
    assert main(["merge", str(recipe), str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    report = Report.from_json((tmp_path / "out/report.json").read_text())
    assert f"sha256 {report.sha256['model.safetensors']}  model.safetensors" in said
    assert "not merged: steps: I64" in said
    assert "6 tensors" in said


def test_merge_takes_the_dtype_of_the_command_line_and_writes_it_down(recipe, tmp_path):
    assert main(["merge", str(recipe), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert load_file(tmp_path / "out/model.safetensors")["a.weight"].dtype == torch.bfloat16
    assert "dtype: bfloat16" in (tmp_path / "out/recipe.yaml").read_text()


def test_inspect_prints_a_table_and_writes_the_report(recipe, tmp_path, capsys):
    assert main(["inspect", str(recipe), "--json", str(tmp_path / "report.json")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[4] == "Experts, in the order of the numbers in a cell: expert-1, expert-2."
    assert said[1].split("  ")[0] == "tensor" and "rank kept" in said[1]
    assert [line.split()[:2] for line in said[2:4]] == [["a.weight", "6×8"], ["b.weight", "8×6"]]
    report = Report.from_json((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert len(report.layers) == 6 and report.decomposed[0].curves["singular_values"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base", "expert-1", "expert-2", "recipe.yaml", "report.json",
    ]  # fmt: skip


def test_what_the_user_can_mend_is_one_line(recipe, tmp_path, capsys):
    assert "Cannot read the recipe" in failed(capsys, "merge", tmp_path / "absent.yaml", tmp_path / "out")
    assert "exists already" in failed(capsys, "merge", recipe, tmp_path / "base")
    assert "cannot be used on this machine" in failed(capsys, "merge", recipe, tmp_path / "out", "--device", "cuda:99")
    assert "cannot be used on this machine" in failed(capsys, "merge", recipe, tmp_path / "out", "--device", "meta")
    assert "cannot be used on this machine" in failed(capsys, "merge", recipe, tmp_path / "out", "--device", "tpuu")
    assert "Cannot write" in failed(capsys, "inspect", recipe, "--json", tmp_path / "absent/report.json")
    assert "Cannot write" in failed(capsys, "merge", recipe, recipe / "out")
    (tmp_path / "expert-1/model.safetensors").write_bytes(b"")
    assert "not a whole safetensors file" in failed(capsys, "merge", recipe, tmp_path / "out")
    recipe.write_text("merge_method: {\n\nmodels: [")
    assert "recipe.yaml, line" in failed(capsys, "inspect", recipe)
    assert not (tmp_path / "out").exists()


def test_words_that_it_does_not_know_are_refused_with_status_2(capsys):
    for arguments in ([], ["mrege"], ["merge"], ["merge", "a", "b", "--dtype", "int3"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert bool(arguments) != ("write a model as a LoRA adapter" in said), "all verbs, where none is given"


def test_what_verbs_there_are_is_said_without_torch():
    code = (
        "import sys; from mergelab.__main__ import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.endswith("False\n")
    assert all(f"    {verb} " in said.stdout for verb in VERBS)


def test_the_command_line_says_its_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"mergelab {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_its_words(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0 and f"usage: mergelab {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb, status", [("check", 0), ("inspect", 1)])
def test_a_process_ends_with_its_status_and_all_that_it_has_said_and_to_do(recipe, tmp_path, verb, status):
    code = (
        "import atexit, pathlib, sys; from mergelab import __main__ as line\n"
        "atexit.register(pathlib.Path(sys.argv.pop(1)).write_text, 'done')\nline.program()"
    )
    words = [str(tmp_path / "end"), verb, str(recipe) if status == 0 else str(tmp_path / "absent.yaml")]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == status and bool(ended.stdout) != bool(ended.stderr)
    assert (tmp_path / "end").read_text() == "done"


def test_a_process_without_a_stderr_ends_with_its_status_too(recipe):
    command = [sys.executable, "-m", "mergelab", "check", str(recipe)]
    ended = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0 and "can be merged" in ended.stdout


@pytest.mark.parametrize("verb", ["inspect", "check", "report", "sweep --json", "sweep --csv"])
def test_a_place_that_cannot_be_written_is_said_before_the_long_work(recipe, tmp_path, capsys, monkeypatch, verb):
    def begun(*given, **more):
        raise AssertionError("the work has begun")

    for name in ("check.check", "inspect.plan", "report.reported", "sweep.Lab.sweep"):
        monkeypatch.setattr(f"mergelab.commands.{name}", begun)
    verb, _, option = verb.partition(" ")
    more = ("--knob", "eta", "--values", "10,40") if verb == "sweep" else ()
    for place in (tmp_path / "absent/file", tmp_path, recipe / "file"):
        places = [place] if verb == "report" else [option or "--json", place]
        assert f"Cannot write '{place}'" in failed(capsys, verb, recipe, *more, *places)


@pytest.mark.parametrize("linked", [True, False])
def test_a_full_disk_leaves_a_file_that_is_there_as_it_was(recipe, tmp_path, capsys, monkeypatch, linked):
    good, write = tmp_path / "good.json", Path.write_text
    good.write_text("good")
    if linked:
        (tmp_path / "link.json").symlink_to(good)

    def full(self, text, *given, **more):
        write(self, text[:10], *given, **more)
        raise OSError(errno.ENOSPC, "No space left on device")

    before, place = sorted(tmp_path.iterdir()), tmp_path / ("link.json" if linked else "good.json")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        assert "No space left on device" in failed(capsys, "inspect", recipe, "--json", place)
    assert good.read_text() == "good" and sorted(tmp_path.iterdir()) == before
    assert main(["inspect", str(recipe), "--json", str(place)]) == 0
    assert json.loads(good.read_text()) and place.is_symlink() == linked


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes of this kind")
def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        check_places(str(tmp_path / "pipe"))
        written_to(str(tmp_path / "pipe"), "text")
        assert read.result(timeout=30) == "text" and (tmp_path / "pipe").is_fifo()


def test_the_module_runs_as_a_program_and_shows_no_traceback(recipe, tmp_path):
    command = [sys.executable, "-m", "mergelab"]
    done = subprocess.run([*command, "merge", recipe, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "out/config.json").is_file(), done.stderr
    done = subprocess.run([*command, "merge", recipe, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"mergelab: '{tmp_path}/out' exists already. Name a new folder: nothing is overwritten.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_a_merge_that_is_ended_leaves_nothing(tmp_path):
    base = write_model(tmp_path / "base", tiny() | {f"layer{i}.weight": torch.rand(256, 256) for i in range(300)})
    (tmp_path / "recipe.yaml").write_text(recipe_of(base, base, base, method="drm_h").to_yaml())
    command = [sys.executable, "-m", "mergelab", "merge", tmp_path / "recipe.yaml", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any("partial" in path.name for path in tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1] == "mergelab: stopped; nothing was written.\n"
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "recipe.yaml"]


def test_a_reader_that_has_seen_enough_is_no_error(recipe):
    command = f"{sys.executable} -m mergelab inspect {recipe} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_merge_counts_its_way_on_a_terminal_only(recipe, tmp_path, capsys, monkeypatch):
    assert main(["merge", str(recipe), str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["merge", str(recipe), str(tmp_path / "two")]) == 0
    assert "\r\x1b[K6/6 " in capsys.readouterr().err
    assert json.loads((tmp_path / "two/config.json").read_text())
