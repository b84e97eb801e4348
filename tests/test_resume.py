"""A merge that is killed goes on where it was, to the same bytes; several processes make those bytes too."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making import finished, merged, noise, put_in_place, recipe_of, reused, shifted, tiny, write_model
from safetensors.torch import load_file, save_file

import mergelab.planning.plan as planning
from mergelab import MergeError, Recipe, Report, inspect, merge, plan
from mergelab.merging import output

KILLED = """
import os, signal, sys
from mergelab import Recipe, merge, plan
for i, layer in enumerate(merge(plan(Recipe.read(sys.argv[1])), sys.argv[2], workers=1)):
    if i == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""
ONE_LOST = """
import os, signal, sys
from mergelab import MergeError, Recipe, merge, plan
try:
    for i, layer in enumerate(merge(plan(Recipe.read(sys.argv[1])), sys.argv[2], workers=1)):
        if i == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
except MergeError as error:
    print(f"said: {error}", flush=True)
    os._exit(1)
"""
TWICE = """
import sys
from mergelab import Recipe, merge, plan
for out in sys.argv[2:]:
    list(merge(plan(Recipe.read(sys.argv[1])), out, workers=1))
"""
# What torch 2.8 says where two processes meet.
GREETING = "[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@pytest.fixture
def many(tmp_path):
    """A recipe's file; its base is in two shards, with enough matrices for two processes."""
    base = tiny() | {f"layers.{i}.weight": noise(40, 30, seed=i).bfloat16() for i in range(12)}
    folders = [write_model(tmp_path / "base", base, shards=2)]
    folders += [write_model(tmp_path / f"expert-{i}", shifted(base, i)) for i in (1, 2)]
    (tmp_path / "recipe.yaml").write_text(recipe_of(*folders, method="star").to_yaml())
    return tmp_path / "recipe.yaml"


def run(*command, **environment):
    return subprocess.run([sys.executable, *command], env=os.environ | environment, capture_output=True, text=True)


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def killed(recipe, out):
    """The hidden folder that a merge leaves which is killed after its third tensor."""
    assert run("-c", KILLED, recipe, out).returncode == -signal.SIGKILL
    assert not Path(out).exists()
    (left,) = hidden(Path(out).parent)
    return left


@posix
def test_a_killed_merge_goes_on_where_it_was_to_the_same_bytes(many, tmp_path):
    left = killed(many, tmp_path / "out")
    lines = (left / "journal-0.jsonl").read_text().splitlines()
    assert len(lines) >= 3
    (left / "journal-0.jsonl").write_text("\n".join([*lines, '{"checksum": 12', ""]))
    whole = merged(Recipe.read(many), tmp_path / "whole")
    report = merged(Recipe.read(many), tmp_path / "out")
    assert f"{len(lines)} tensors were finished by a run that was broken off, and are taken from it." in report.notes
    assert report.sha256 == whole.sha256 and report.layers == whole.layers
    assert {path.name for path in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert not hidden(tmp_path)


@posix
@pytest.mark.parametrize("harm", ["bytes", "shard", "journal"])
def test_what_was_harmed_since_the_kill_is_merged_again(many, tmp_path, harm):
    left = killed(many, tmp_path / "out")
    if harm == "journal":
        (left / "journal-0.jsonl").write_text('{"checksum": 0, "layer": 3}\n[]\nno JSON\n')
    else:
        shard = left / "model-00001-of-00002.safetensors"
        shard.write_bytes(shard.read_bytes()[: None if harm == "bytes" else -1][:-4000] + b"\7" * 4000)
    whole = merged(Recipe.read(many), tmp_path / "whole")
    assert merged(Recipe.read(many), tmp_path / "out").sha256 == whole.sha256


@posix
@pytest.mark.parametrize("change", ["recipe", "expert", "date kept"])
def test_another_merge_to_the_same_place_does_not_go_on_with_it_but_removes_it(many, tmp_path, change):
    killed(many, tmp_path / "out")
    recipe = Recipe.read(many)
    if change == "recipe":
        many.write_text(many.read_text().replace("weight: 1.0", "weight: 0.5"))
        recipe = Recipe.read(many)
    else:
        file = tmp_path / "expert-1/model.safetensors"
        if change == "date kept":
            put_in_place(file, (tmp_path / "expert-2/model.safetensors").read_bytes())
        else:
            save_file(load_file(file), file, metadata={"format": "pt"})
    report = merged(recipe, tmp_path / "out")
    assert "What another merge to this place had left unfinished was removed." in report.notes
    assert not any("broken off" in note for note in report.notes)
    assert report.sha256 == merged(recipe, tmp_path / "whole").sha256
    assert not hidden(tmp_path)


@pytest.mark.parametrize("who", ["base/model-00001-of-00002", "expert-1/model"])
def test_an_input_that_is_replaced_while_it_is_merged_ends_the_merge_by_name(many, tmp_path, who):
    file = tmp_path / f"{who}.safetensors"
    job = merge(plan(Recipe.read(many)), tmp_path / "out", workers=1)
    next(job)
    put_in_place(file, file.read_bytes())
    with pytest.raises(MergeError, match=f"'{file}' was changed after it was opened, so nothing was made of it"):
        finished(job)
    assert not hidden(tmp_path) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [lambda work, out: merge(work, out), lambda work, out: inspect(work)])
@pytest.mark.parametrize("file", ["base/model-00001-of-00002.safetensors", "expert-1/model.safetensors"])
def test_an_input_that_is_replaced_after_the_plan_was_made_is_not_read_at_the_places_of_the_old_one(
    many, tmp_path, file, verb
):
    work, file = plan(Recipe.read(many)), tmp_path / file
    save_file(load_file(file), file, metadata={"format": "pt", "more": "than before"})  # each tensor further on
    with pytest.raises(MergeError, match=f"'{file}' was changed after it was opened"):
        next(verb(work, tmp_path / "out"))
    assert not hidden(tmp_path) and not (tmp_path / "out").exists()


def test_a_folder_that_is_opened_twice_is_checked_against_what_it_was_at_first(many, tmp_path, monkeypatch):
    expert, opened = tmp_path / "expert-1/model.safetensors", planning.opened_expert

    def between(*args):
        put_in_place(expert, expert.read_bytes())
        return opened(*args)

    monkeypatch.setattr(planning, "opened_expert", between)
    recipe = recipe_of(tmp_path / "base", tmp_path / "expert-1", tmp_path / "expert-1")
    with pytest.raises(MergeError, match="was changed after it was opened"):
        merged(recipe, tmp_path / "out")


@posix
@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
def test_a_merge_is_not_gone_on_with_once_another_file_says_what_the_weights_are(tmp_path, file):
    base = {"model.embed_tokens.weight": noise(200, 8).float()}
    base |= {f"layers.{i}.weight": noise(8, 8, seed=i).float() for i in range(6)}
    recipe = recipe_of(
        write_model(tmp_path / "base", base),
        write_model(tmp_path / "expert", shifted(base, 1)),
        vocabulary="base",
    )
    for folder in ("base", "expert"):
        write_tokens(tmp_path / folder, shift=0)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    killed(tmp_path / "recipe.yaml", tmp_path / "out")
    if file == "tokenizer.json":
        write_tokens(tmp_path / "expert", shift=7)
    else:
        (tmp_path / "expert/config.json").write_text('{"model_type": "tiny", "tie_word_embeddings": false}')
    report = merged(recipe, tmp_path / "out")
    assert "What another merge to this place had left unfinished was removed." in report.notes
    assert report.sha256 == merged(recipe, tmp_path / "whole").sha256


def write_tokens(folder, shift):
    vocabulary = {f"token {(row + shift) % 200}": row for row in range(200)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


def test_an_input_that_is_gone_while_it_is_merged_is_named_and_not_the_place_that_is_written(many, tmp_path):
    file = tmp_path / "expert-2/model.safetensors"
    job = merge(plan(Recipe.read(many)), tmp_path / "out", workers=1)
    next(job)
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(MergeError, match=f"Cannot read '{file}' any more: No such file or directory"):
        finished(job)
    assert not hidden(tmp_path) and not (tmp_path / "out").exists()


def test_two_processes_cannot_make_the_same_merge_at_the_same_place_at_once(many, tmp_path):
    work = plan(Recipe.read(many))
    first = merge(work, tmp_path / "out")
    next(first)
    with pytest.raises(MergeError, match="Another process is making this very merge"):
        next(merge(work, tmp_path / "out"))
    assert finished(first).sha256 and not hidden(tmp_path)


def test_a_folder_that_is_about_to_be_locked_is_no_leftover(tmp_path):
    other = tmp_path / ".out.0123456789ab.partial"
    other.mkdir()
    (other / "lock").touch()
    assert not output.remove_leftovers(tmp_path / "out", "f" * 12) and (other / "lock").is_file()
    (other / "model.safetensors").touch()
    assert output.remove_leftovers(tmp_path / "out", "f" * 12) and not other.exists()


def test_a_folder_that_is_removed_as_a_leftover_before_it_is_locked_is_made_anew(tmp_path, monkeypatch):
    locked, harms = output.locked, ["before it is opened", "after it was opened"]

    def late(path):
        harm = harms.pop(0) if harms else ""
        if harm == "before it is opened":
            shutil.rmtree(path.parent)
        lock = locked(path)
        if harm == "after it was opened":
            shutil.rmtree(path.parent)
        return lock

    monkeypatch.setattr(output, "locked", late)
    with output.new_folder(tmp_path / "out") as folder:
        assert not harms and (folder / "lock").is_file()
    assert (tmp_path / "out").is_dir()


def test_a_hidden_folder_has_its_lock_until_it_is_the_merge(many, tmp_path, monkeypatch):
    seen, rename = [], Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: seen.append((path / "lock").is_file()) or rename(path, to))
    merged(Recipe.read(many), tmp_path / "out")
    assert seen == [True] and not (tmp_path / "out/lock").exists()


def test_what_is_no_leftover_of_ours_is_left_alone(many, tmp_path):
    for name in (".out.0123456789ab.partial", ".out.mine.partial", ".other.0123456789ab.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".other.0123456789ab.partial/lock").touch()
    merged(Recipe.read(many), tmp_path / "out")
    assert len(hidden(tmp_path)) == 3


def together(code, *arguments):
    """Two processes that a launcher would start: what each of them printed, and how it ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    started = [
        subprocess.Popen(
            [sys.executable, *code, *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120) for process in started]
    return said, [process.returncode for process in started]


@posix
def test_two_processes_write_the_bytes_of_one_and_a_lost_one_ends_the_job_which_then_goes_on(many, tmp_path):
    whole = merged(Recipe.read(many), tmp_path / "whole")
    said, status = together(["-c", ONE_LOST], many, tmp_path / "out")
    assert status == [1, -signal.SIGKILL], said
    assert "said: One of the 2 processes of this merge has ended. What is finished is kept" in said[0][0]
    assert not (tmp_path / "out").exists() and len(hidden(tmp_path)) == 1
    said, status = together(["-m", "mergelab", "merge"], many, tmp_path / "out", "--workers", "1")
    assert status == [0, 0], said
    assert "tensors were finished by a run that was broken off" in said[0][0]
    assert said[1][0] in ("", GREETING)
    assert said[0][1].startswith(f"going on with a merge to '{tmp_path}/out' that was broken off\n")
    for file, digest in whole.sha256.items():
        assert f"sha256 {digest}  {file}" in said[0][0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert not hidden(tmp_path)


def test_what_was_known_from_before_is_counted_in_all_processes(many, tmp_path):
    said, status = together(["-c", TWICE], many, tmp_path / "one", tmp_path / "two")
    assert status == [0, 0], said
    notes = Report.from_json((tmp_path / "two/report.json").read_text()).notes
    assert reused("28 of 28") in notes  # 14 matrices of two experts


def test_what_one_of_two_processes_finds_wrong_is_one_line_and_leaves_nothing(many, tmp_path):
    file = tmp_path / "expert-2/model.safetensors"
    save_file(load_file(file) | {"layers.7.weight": torch.full((40, 30), float("nan")).bfloat16()}, file)
    said, status = together(["-m", "mergelab", "merge"], many, tmp_path / "out")
    assert status == [1, 1]
    errors = [line for line in (said[0][1] + said[1][1]).splitlines() if line.startswith("mergelab:")]
    assert len(errors) == 1 and "'layers.7.weight' of expert 'expert-2' holds NaN" in errors[0]
    assert not hidden(tmp_path) and not (tmp_path / "out").exists()
