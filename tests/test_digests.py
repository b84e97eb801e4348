"""Hashes found beside the work: once for each file, for everybody who asks, and again where a file has changed."""

import hashlib
import sys
from subprocess import run

import pytest
from making import put_in_place

from mergelab import MergeError
from mergelab.files import digests

EXECUTABLE = sys.executable


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def test_a_file_is_read_once_and_again_when_it_has_changed(file, monkeypatch):
    read, digest = [], digests._digest
    monkeypatch.setattr(digests, "_digest", lambda path: read.append(path) or digest(path))
    digests.begin([file])
    assert digests.sha256_of(file) == digests.sha256_of(file) == hashlib.sha256(b"one").hexdigest()
    assert read == [file]
    file.write_bytes(b"three")
    with digests.hashed([file]) as found:
        assert found() == {file: hashlib.sha256(b"three").hexdigest()}
    assert read == [file, file]


def test_another_file_of_equal_size_and_date_in_its_place_is_another_file(file):
    digests.sha256_of(file)
    put_in_place(file, b"two")
    assert digests.sha256_of(file) == hashlib.sha256(b"two").hexdigest()


def test_whoever_waits_for_what_somebody_else_gave_up_finds_it_all_the_same(file, monkeypatch):
    monkeypatch.setattr(digests, "_queue", lambda: type("Queue", (), {"put": lambda self, work: None})())
    with digests.hashed([file]) as found:
        digests.begin([file])[0].cancel()  # as the end of another merge does
        assert found() == {file: hashlib.sha256(b"one").hexdigest()}


def test_a_fault_is_not_remembered(file, monkeypatch):
    def refused(path):
        raise OSError("no disk")

    with monkeypatch.context() as patched, pytest.raises(MergeError, match="Cannot read '.*weights' any more: no disk"):
        patched.setattr(digests, "_digest", refused)
        digests.sha256_of(file)
    assert digests.sha256_of(file) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("python", [sys.executable, "", "/bin/false"], ids=["a process", "none", "one that fails"])
def test_a_large_file_is_hashed_in_a_process_of_its_own_or_else_here(file, monkeypatch, python):
    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests.sha256, "CHUNK", 4)
    monkeypatch.setattr(digests.sys, "executable", python)
    here, digest_of = [], digests.sha256.digest_of
    monkeypatch.setattr(digests.sha256, "digest_of", lambda path: here.append(path) or digest_of(path))
    file.write_bytes(b"0123456789")
    assert digests.sha256_of(file) == hashlib.sha256(b"0123456789").hexdigest()
    assert here == [str(file)] * (python != EXECUTABLE)


def test_the_command_line_finds_the_weights_that_a_recipe_names_before_torch_is_there(trio, tmp_path):
    base, *experts = trio
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base_model: {base}\nmodels: [{{model: {experts[0]}+{experts[1]}}}, {{model: nobody/has-it}}]\n")
    code = (
        "import sys; from mergelab import __main__ as line; from mergelab.files import digests\n"
        "print(*line._weights(sys.argv[1:]), *(name for name in ('torch', 'numpy') if name in sys.modules), sep='\\n')"
    )
    done = run([sys.executable, "-c", code, str(recipe), "out"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / "model.safetensors") for folder in (base, *experts)]
