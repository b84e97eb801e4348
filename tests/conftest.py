"""Fixtures that several test files share: families of small models, made without a network."""

import threading
from functools import partial
from http.server import ThreadingHTTPServer

import pytest
import torch
from hub import Hub
from making import shifted, tiny, write_model

from mergelab.merging.store import shared_store


@pytest.fixture(autouse=True)
def fresh_store(tmp_path_factory, monkeypatch):
    """No test finds what another one has kept, nor what this machine's user has."""
    monkeypatch.setenv("MERGELAB_CACHE", str(tmp_path_factory.mktemp("factors")))
    shared_store.cache_clear()


@pytest.fixture
def trio(tmp_path):
    """Folders of a small base and of two experts fine-tuned from it, with one tensor of each kind."""
    base = tiny()
    write_model(tmp_path / "base", base)
    return (tmp_path / "base", *(write_model(tmp_path / f"expert-{i}", shifted(base, seed=i)) for i in (1, 2)))


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """family(model): a transformers model saved as base, and two copies of it, moved a little, as experts."""

    def made(model):
        folder = tmp_path_factory.mktemp(type(model).__name__)
        folders = [folder / name for name in ("base", "expert-1", "expert-2")]
        model.save_pretrained(folders[0])
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for seed, expert in enumerate(folders[1:], start=1):
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(start[name] + 0.02 * torch.randn(parameter.shape, generator=draw))
            model.save_pretrained(expert)
        return folders

    return made


@pytest.fixture
def hub(tmp_path):
    """The folder behind a stand-in for the Hub, its address, what it was asked for, and what is to break off."""
    (tmp_path / "hub").mkdir()
    asked, dies = [], {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "hub", asked, dies))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "hub", f"http://127.0.0.1:{server.server_port}", asked, dies
    server.shutdown()
    server.server_close()
