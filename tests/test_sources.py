"""Where a model may come from: a folder, a bundled name, the Hub (here a stand-in on this machine)."""

import pytest
from hub import COMMIT, TOKEN, mergelab, surroundings
from making import merged, noise, recipe_of, tiny, write_adapter, write_model

from mergelab import MergeError
from mergelab.assets import bundled
from mergelab.files.push import push
from mergelab.files.sources import folder_of, hub_failure, revision_of
from mergelab.lab.state import source_state
from mergelab.planning.check import check
from mergelab.planning.plan import plan


def command_line(tmp_path, address, base, expert, **env):
    """`mergelab merge` in a process of its own, whose Hub is at an address."""
    (tmp_path / "recipe.yaml").write_text(recipe_of(base, expert, method="star").to_yaml())
    return mergelab(
        "merge", tmp_path / "recipe.yaml", tmp_path / "out", env=surroundings(address, tmp_path / "cache", **env)
    )


def test_models_of_the_hub_are_downloaded_without_pickles_and_code(hub, tmp_path):
    root, address, asked, _ = hub
    base = write_model(root / "org/base", tiny())
    for name in ("pytorch_model.bin", "modeling_tiny.py", "tokenizer.json"):
        (base / name).write_text("{}")
    pair = {"a.lora_A.weight": noise(2, 8).float(), "a.lora_B.weight": noise(6, 2).float()}
    write_adapter(root / "org/lora", pair, base_model_name_or_path="org/base")
    done = command_line(tmp_path, address, "org/base", "org/lora@main")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file() and (tmp_path / "out/tokenizer.json").is_file()
    assert not any(path.endswith((".bin", ".py")) for path, _ in asked)
    again = merged(recipe_of(base, root / "org/lora", method="star"), tmp_path / "again")
    assert again.sha256["model.safetensors"] in done.stdout


def test_a_model_that_the_hub_does_not_have_is_one_clear_line(hub, tmp_path):
    root, address, _, _ = hub
    write_model(root / "org/base", tiny())
    done = command_line(tmp_path, address, "org/base", "org/absent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "mergelab: There is no folder 'org/absent' here, and the Hub has no such model, or it"
    )
    done = command_line(tmp_path, address, "org/base@v9", "org/base")
    assert "the Hub has no revision 'v9' of it" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_private_model_needs_a_token_which_is_never_shown_nor_kept(hub, tmp_path):
    root, address, _, _ = hub
    write_model(root / "secret/base", tiny())
    done = command_line(tmp_path, address, "secret/base", "secret/base")
    assert done.returncode == 1 and "or it is private: log in with `hf auth login`, or set HF_TOKEN" in done.stderr
    done = command_line(tmp_path, address, "secret/base", "secret/base", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    files = [
        path for path in tmp_path.rglob("*") if path.is_file() and "hub" not in path.relative_to(tmp_path).parts[:1]
    ]
    assert files and not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_connection_that_dies_midway_is_taken_up_where_it_broke_off(hub, tmp_path):
    root, address, _, dies = hub
    base = write_model(root / "org/base", tiny())
    dies["model.safetensors"] = 1
    done = command_line(tmp_path, address, "org/base", "org/base")
    assert done.returncode == 0, done.stderr
    again = merged(recipe_of(base, base, method="star"), tmp_path / "again")
    assert again.sha256["model.safetensors"] in done.stdout
    assert dies["model.safetensors"] == 0


def test_a_folder_has_no_revisions_and_a_snapshot_of_the_hub_is_one(tmp_path):
    base = write_model(tmp_path / "base", tiny())
    with pytest.raises(MergeError, match="a folder has no revisions"):
        folder_of(f"{base}@main")
    assert revision_of(tmp_path / "hub/models--org--base/snapshots" / COMMIT) == COMMIT
    assert revision_of(base) is None and revision_of(tmp_path / COMMIT) is None


def test_the_home_of_nobody_is_one_clear_error_wherever_it_is_named(trio, tmp_path):
    for recipe in (recipe_of(trio[0], "~nobody-here/x+lora"), recipe_of("~nobody-here/x", trio[1])):
        with pytest.raises(MergeError, match="'~nobody-here/x' cannot be the name of a folder"):
            plan(recipe)
        assert any("cannot be the name of a folder" in problem for problem in check(recipe).problems)
    with pytest.raises(MergeError, match="'~nobody-here/x' is no folder of a model"):
        push("~nobody-here/x", "me/x")
    with pytest.raises(MergeError, match="Cannot write '~nobody-here/x': Could not determine home directory. Choose"):
        merged(recipe_of(*trio), "~nobody-here/x")


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


def test_a_name_on_the_hub_is_the_commit_that_it_was_last_seen_to_mean(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert source_state("org/base") == ""
    for commit in (COMMIT, COMMIT[::-1]):
        (tmp_path / "models--org--base/refs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models--org--base/refs/main").write_text(commit)
        (tmp_path / "models--org--base/snapshots" / commit).mkdir(parents=True)
        (tmp_path / "models--org--base/snapshots" / commit / "config.json").write_text("{}")
        assert source_state("org/base") == commit
    assert source_state(f"org/base@{COMMIT}") == COMMIT and source_state("numbers/base") == ""


def test_what_the_hubs_own_library_says_of_a_card_is_passed_on_and_no_token_is():
    assert hub_failure(ValueError("Invalid metadata in README.md.\n- a: b")).endswith("in README.md. - a: b")
    assert TOKEN not in hub_failure(ValueError(f"refused {TOKEN}"))
