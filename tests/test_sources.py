"""Where a model may come from: a folder, a bundled name, the Hub (here a stand-in on this machine)."""

import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from making import merged, noise, recipe_of, tiny, write_adapter, write_model

from mergelab.assets import bundled
from mergelab.plan import plan
from mergelab.sources import folder_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the Hub to download a model; the models are the folders of `root`."""

    def __init__(self, root, asked, *arguments):
        self.root, self.asked = root, asked
        super().__init__(*arguments)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/(revision|tree)/(\w+)", path):
            model, what, revision = match.groups()
            if not (self.root / model).is_dir():
                return self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", COMMIT):
                return self.say(404, b"", {"X-Error-Code": "RevisionNotFound"})
            files = sorted((self.root / model).iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": oid(f)} for f in files]
            about = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            return self.say(200, json.dumps(tree if what == "tree" else about).encode())
        model, name = re.fullmatch(rf"/(\w+/\w+)/resolve/{COMMIT}/(.+)", path).groups()
        file = self.root / model / name
        self.say(200, file.read_bytes(), {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT})

    def say(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def oid(file):
    return sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path):
    """The folder behind a stand-in for the Hub, its address, and the list of what it was asked for."""
    (tmp_path / "hub").mkdir()
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "hub", asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "hub", f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def command_line(tmp_path, address, base, expert):
    """`mergelab merge` in a process of its own, whose Hub is at an address."""
    (tmp_path / "recipe.yaml").write_text(recipe_of(base, expert, method="star").to_yaml())
    own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HTTP", "ALL_PROXY"))}
    command = [sys.executable, "-m", "mergelab", "merge", tmp_path / "recipe.yaml", tmp_path / "out"]
    return subprocess.run(command, env=kept | own, capture_output=True, text=True)


def test_models_of_the_hub_are_downloaded_without_pickles_and_code(hub, tmp_path):
    root, address, asked = hub
    base = write_model(root / "org/base", tiny())
    for name in ("pytorch_model.bin", "modeling_tiny.py", "tokenizer.json"):
        (base / name).write_text("{}")
    pair = {"a.lora_A.weight": noise(2, 8).float(), "a.lora_B.weight": noise(6, 2).float()}
    write_adapter(root / "org/lora", pair, base_model_name_or_path="org/base")
    done = command_line(tmp_path, address, "org/base", "org/lora@main")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file() and (tmp_path / "out/tokenizer.json").is_file()
    assert not any(path.endswith((".bin", ".py")) for path in asked)
    again = merged(recipe_of(base, root / "org/lora", method="star"), tmp_path / "again")
    assert again.sha256["model.safetensors"] in done.stdout


def test_a_model_that_the_hub_does_not_have_is_one_clear_line(hub, tmp_path):
    root, address, _ = hub
    write_model(root / "org/base", tiny())
    done = command_line(tmp_path, address, "org/base", "org/absent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "mergelab: There is no folder 'org/absent' here, and the Hub has no such model, or it"
    )
    done = command_line(tmp_path, address, "org/base@v9", "org/base")
    assert "the Hub has no revision 'v9' of it" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_is_one_clear_line(tmp_path):
    done = command_line(tmp_path, "http://127.0.0.1:9", "org/base", "org/expert")
    assert done.returncode == 1
    assert done.stderr == (
        "mergelab: There is no folder 'org/base' here, and the Hub could not be reached (ConnectError).\n"
    )


def test_a_folder_goes_before_a_bundled_model_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("mergelab.assets.ASSETS", tmp_path / "assets")
    base = write_model(tmp_path / "assets/numbers/base", tiny())
    adapter = write_adapter(tmp_path / "assets/numbers/lora", {"b.bias": noise(8).float()})
    assert bundled() == {"numbers/base": base, "numbers/lora": adapter}
    assert folder_of("numbers/base") == base
    assert plan(recipe_of("numbers/base", "numbers/base+numbers/lora")).experts[0].adapter
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "numbers/base", tiny())
    assert folder_of("numbers/base").resolve() == tmp_path / "numbers/base"


def test_every_bundled_model_opens_and_every_family_has_a_base():
    assert "numbers/base" in bundled()
    for name in bundled():
        base = f"{name.split('/')[0]}/base"
        assert plan(recipe_of(base, name)).names
