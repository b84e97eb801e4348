"""A folder onto the Hub (here a stand-in): with a login that is given, which is never shown; refusals say why."""

import os

import pytest
from hub import TOKEN, mergelab, surroundings
from making import merged, recipe_of


@pytest.fixture
def out(trio, tmp_path):
    merged(recipe_of(*trio, shard_size=400), tmp_path / "out")
    (tmp_path / "out/.hidden").write_text("stays here")
    return tmp_path / "out"


def test_a_folder_is_pushed_whole_with_the_token_of_the_environment(hub, out, tmp_path):
    root, address, _, _ = hub
    env = surroundings(address, tmp_path / "cache", HF_TOKEN=TOKEN)
    done = mergelab("push", out, "org/merged", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{address}/org/merged\n" and TOKEN not in done.stdout + done.stderr
    wanted = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".hidden"}
    assert {path.name: path.read_bytes() for path in (root / "org/merged").iterdir()} == wanted


def test_without_a_login_nothing_is_pushed_and_it_says_why(hub, out, tmp_path):
    root, address, _, _ = hub
    done = mergelab("push", out, "org/merged", env=surroundings(address, tmp_path / "cache"))
    assert done.returncode == 1 and "Log in with `hf auth login`, or set HF_TOKEN" in done.stderr
    assert done.stderr.count("\n") == 1 and not (root / "org").exists()


@pytest.mark.parametrize(
    "folder, repo, message",
    [
        ("absent", "org/x", "no folder of a model"),
        ("empty", "org/x", "no safetensors"),
        ("out", "a/b/c", "cannot be the name"),
    ],
)
def test_what_is_no_model_or_no_name_is_refused_before_the_hub_is_asked(out, tmp_path, folder, repo, message):
    from mergelab import MergeError
    from mergelab.files.push import push

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text("{}")
    before = dict(os.environ)
    with pytest.raises(MergeError, match=message):
        push(tmp_path / folder, repo, token="none")
    assert dict(os.environ) == before


def test_the_page_pushes_with_the_visitors_login_and_draws_nothing_where_there_is_none(monkeypatch):
    import gradio as gr

    from mergelab.lab.lab import Lab
    from mergelab.page.push import draw_push, pushed

    asked, lab = [], Lab()
    monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)
    assert draw_push(lab, None, None) is None  # outside of a page it could draw nothing
    monkeypatch.setattr(lab, "run_named", lambda key: key)
    monkeypatch.setattr(lab, "push", lambda *given: asked.append(given) or "its address")
    assert "Log in first" in pushed(lab, "key", "me/merged", None) and asked == []
    said = pushed(lab, "key", " me/merged ", gr.OAuthToken(TOKEN, "write-repos", 0))
    assert "Pushed: its address" in said and TOKEN not in said and asked == [("key", "me/merged", TOKEN)]
