"""The README's blocks of Python and its calls of the page do what it says; each is run as it stands there."""

import re
import subprocess
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch

import mergelab
from mergelab.lab.lab import Lab
from mergelab.page import launch

HOUSE = Path(__file__).resolve().parent.parent
TEXT = (HOUSE / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
ADDRESS = "http://127.0.0.1:7860"


def block(word):
    """The one block of Python with that word in it."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    """A folder with the assets in it, as a clone has them, where what is written does no harm."""
    (tmp_path / "assets").symlink_to(HOUSE / "assets")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("runs"), device="cpu")
    _, address, _ = launch(lab, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address.rstrip("/")
    gr.close_all(verbose=False)


def test_every_block_of_python_is_run_here():
    assert len(BLOCKS) == 4 and all(block(word) for word in ("from mergelab import", "Client", "applied", "metagpt"))


def test_the_python_api_is_as_short_as_it_says(capsys):
    names = {}
    exec(block("from mergelab import"), names)
    said = capsys.readouterr().out
    assert "4 experts fit the base" in said and "rank kept" not in said and "q_proj" in said
    assert names["report"].sha256["model.safetensors"] in said
    assert names["swept"].points[names["swept"].best].value in (20, 40, 60)


def test_what_the_readme_imports_are_all_the_public_names_it_needs():
    (line,) = re.findall(r"^from mergelab import (.+)$", block("from mergelab import"), re.MULTILINE)
    assert {*line.split(", ")} <= {*mergelab.__all__}


def test_the_client_does_what_it_says(url, capsys):
    names = {}
    exec(block("Client").replace(ADDRESS, url), names)
    names["client"].close()
    said = capsys.readouterr().out
    assert "\n[]\n" in said and names["made"]["sha256"]["model.safetensors"] in said
    assert httpx.get(url + names["made"]["download"]).content[:2] == b"PK"


def test_the_calls_by_curl_do_what_they_say(url):
    (block,) = [text for text in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) if "curl" in text]
    start, follow, health = re.split(r"\n(?=curl)", block.replace(ADDRESS, url).strip())
    event = re.fullmatch(r'\{"event_id":"(\w+)"\}', shell(start))[1]
    answer = shell(follow.replace("EVENT_ID", event))
    assert "event: complete" in answer and '"problems": []' in answer and "2 experts" not in answer
    assert f'"version":"{mergelab.__version__}"' in shell(health)


def shell(line):
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_repair_is_put_on_and_taken_off_as_shown():
    from mergelab.assets import bundled
    from mergelab.model import encoded, running

    run, expert = running(bundled()["numbers/base"]), running(bundled()["numbers/french"])
    merged, batch = run.model, {name: ids.repeat(4, 1) for name, ids in encoded(run, "french: 34 =").items()}
    before = merged(**batch).logits
    names = {"merged": merged, "expert": expert.model, "batch": batch}
    exec(block("applied").replace("merged.generate(...)", "inside = merged(**batch).logits"), names)
    assert not torch.equal(names["inside"], before) and torch.equal(merged(**batch).logits, before)


def test_the_method_of_the_readme_is_its_file():
    assert block("metagpt") == (HOUSE / "mergelab" / "methods" / "metagpt.py").read_text(encoding="utf-8")
