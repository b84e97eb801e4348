"""What a merge writes beside the weights, and how it deals these out: shards, tokenizer, template, card, hashes."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from making import merged, noise, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import load_file
from test_fit import WORDS, model, write_tokens

from mergelab import Expert, MergeError, Recipe, plan
from mergelab.__main__ import main
from mergelab.files.checkpoint import Checkpoint, Entry
from mergelab.files.digests import sha256_of
from mergelab.files.shards import ShardWriter
from mergelab.merging.card import shown_source
from mergelab.recipes.mergekit_yaml import size


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])


def test_weights_are_dealt_out_to_files_of_a_size_and_the_index_names_them(trio, tmp_path):
    (tmp_path / "r.yaml").write_text(recipe_of(*trio).to_yaml())
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--shard-size", "400"]) == 0
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "whole")]) == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert (
        files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)] and len(files) > 1
    )
    out, whole = (Checkpoint(tmp_path / name, name) for name in ("out", "whole"))
    assert out.keys() == whole.keys() and all((out[n] == whole[n]).all() for n in out)
    held = {file: [n for n, entry in out.entries.items() if entry.file == file] for file in files}
    for names in held.values():
        assert len(names) == 1 or sum(out[n].numel() * out[n].element_size() for n in names) <= 400
    again = merged(Recipe.read(tmp_path / "out/recipe.yaml"), tmp_path / "again")
    assert again.sha256 == {file: sha256_of(tmp_path / "out" / file) for file in files}


@pytest.mark.parametrize("order", [range(40), range(39, -1, -1), [*range(0, 40, 2), *range(1, 40, 2)]], ids=str)
@pytest.mark.parametrize("said", [40, 25, 0], ids=lambda said: f"{said} said to be finished")
def test_the_hash_of_a_file_is_found_while_it_is_written_whatever_the_order(tmp_path, order, said):
    tensors = {f"t{i}": noise(30, 1 + i, seed=i, dtype=torch.float32) for i in range(40)}
    entries = {name: Entry("file", "F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    writer = ShardWriter(tmp_path / "file", entries, ThreadPoolExecutor(1))
    writer.create()

    def put(i):
        writer.put(f"t{i}", tensors[f"t{i}"])
        if i < said:
            writer.finished(f"t{i}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, order))
    assert writer.sha256() == writer.sha256() == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "file").items())


def test_what_keeps_a_file_from_being_hashed_while_it_is_written_is_said_when_the_hash_is_asked_for(tmp_path):
    writer = ShardWriter(
        tmp_path / "file", {name: Entry("file", "F32", (3,)) for name in ("a", "b")}, ThreadPoolExecutor(1)
    )
    writer.create()
    (tmp_path / "file").rename(tmp_path / "elsewhere")
    writer.finished("a")
    with suppress(OSError):
        writer._hashing[0].result()
    (tmp_path / "elsewhere").rename(tmp_path / "file")
    with pytest.raises(FileNotFoundError):  # and no hash of half a file
        writer.sha256()


def test_a_size_is_read_as_people_write_it():
    assert [size(text, "size") for text in ("5GB", "500 mb", "1.5k", 7)] == [5 * 10**9, 5 * 10**8, 1500, 7]
    for wrong in ("", "five", "-1", "0", "1XB", True, None, [1], "9" * 40):
        with pytest.raises(MergeError, match="must be a number of bytes such as 5GB"):
            size(wrong, "The size")


@pytest.fixture
def worded(tmp_path):
    """A base and an expert with tokenizers; the expert's has one more token and a chat template."""
    base = write_tokens(write_model(tmp_path / "base", model(rows=405)), WORDS)
    expert = write_tokens(write_model(tmp_path / "expert", model(1, rows=405)), WORDS, added=["<new>"])
    (base / "special_tokens_map.json").write_text("{}")
    (expert / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ new }}", "model_max_length": 8}))
    return base, expert


def test_the_tokenizer_is_the_bases_or_that_of_the_named_model(worded, tmp_path):
    base, expert = worded
    merged(recipe_of(base, expert), tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    merged(recipe_of(base, expert, tokenizer_source=str(expert)), tmp_path / "other")
    assert (tmp_path / "other/tokenizer.json").read_bytes() == (expert / "tokenizer.json").read_bytes()
    assert (tmp_path / "other/tokenizer_config.json").exists() and not (
        tmp_path / "other/special_tokens_map.json"
    ).exists()


def test_a_chat_template_is_the_one_that_was_asked_for(worded, tmp_path):
    base, expert = worded
    shutil.copytree(expert, tmp_path / "third")
    (tmp_path / "third/chat_template.jinja").write_text("{{ own }}")
    merged(recipe_of(base, expert, expert, tmp_path / "third", chat_template="auto"), tmp_path / "out")
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ new }}"
    merged(recipe_of(expert, base, chat_template="{{ asked }}"), tmp_path / "asked")
    assert (tmp_path / "asked/chat_template.jinja").read_text() == "{{ asked }}"
    assert json.loads((tmp_path / "asked/tokenizer_config.json").read_text()) == {"model_max_length": 8}


def test_a_tokenizer_that_does_not_go_with_the_embeddings_is_refused(worded, tmp_path):
    base, expert = worded
    plain = write_model(tmp_path / "plain", model(1, rows=405))
    for words, message in ((WORDS[::-1], "means other tokens"), ([*WORDS, *"abcdefg"], "has a token for row 406")):
        write_tokens(expert, words)
        with pytest.raises(MergeError, match=message):
            plan(recipe_of(base, plain, tokenizer_source=str(expert)))
    with pytest.raises(MergeError, match="no tokenizer files"):
        plan(recipe_of(base, plain, tokenizer_source=str(plain)))


def test_the_card_names_all_models_and_mergekit_only_where_it_runs(trio, tmp_path):
    merged(recipe_of(*trio, method="ties", shard_size=400), tmp_path / "out")
    assert front(tmp_path / "out")["tags"] == ["merge", "mergelab", "mergekit", "ties"]
    merged(recipe_of(*trio, method="star"), tmp_path / "star")
    merged(recipe_of(*trio, method="ties", decompose_embeddings=True), tmp_path / "extra")
    merged(recipe_of(trio[0], trio[1], trio[1], method="ties"), tmp_path / "twice")
    assert not any("mergekit" in front(tmp_path / name)["tags"] for name in ("star", "extra", "twice"))
    assert front(tmp_path / "out")["base_model"] == ["base", "expert-1", "expert-2"]
    shown = Recipe("org/base@v1", (Expert("org/base@v1+org/lora@v2"),), "star")
    from mergelab.merging.card import model_card

    card = model_card(shown, plan(recipe_of(*trio)).method, merged(recipe_of(*trio), tmp_path / "any"), trio)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["org/base", "org/lora"]


def test_licences_that_differ_are_told(trio, tmp_path):
    for folder, licence in zip(trio, ("mit", "mit", "llama3")):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    merged(recipe_of(*trio[:2]), tmp_path / "same")
    assert front(tmp_path / "same")["license"] == "mit"
    merged(recipe_of(*trio), tmp_path / "out")
    assert front(tmp_path / "out")["license"] == "other"
    assert "expert-2: llama3" in (tmp_path / "out/README.md").read_text()


def test_all_inputs_are_in_the_report_with_their_hashes(trio, tmp_path):
    adapter = write_adapter(tmp_path / "lora", {"a.lora_A.weight": noise(2, 8), "a.lora_B.weight": noise(6, 2)})
    report = merged(recipe_of(*trio, adapter), tmp_path / "out")
    assert report.inputs == {
        **{str(f): {"model.safetensors": sha256_of(f / "model.safetensors")} for f in trio},
        str(adapter): {n: sha256_of(adapter / n) for n in ("adapter_config.json", "adapter_model.safetensors")},
    }
    assert json.loads((tmp_path / "out/report.json").read_text())["inputs"] == report.inputs
    assert {"torch", "numpy", "safetensors"} <= report.versions.keys()


def test_a_file_in_the_cache_of_the_hub_is_known_by_its_name(tmp_path):
    digest = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_text("not read")
    folder = tmp_path / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(tmp_path / "blobs" / digest)
    assert sha256_of(folder / "model.safetensors") == digest


def test_a_link_to_a_file_that_is_only_named_like_a_hash_is_read(tmp_path):
    (tmp_path / ("ab" * 32)).write_text("read")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / ("ab" * 32))
    assert sha256_of(tmp_path / "model.safetensors") == hashlib.sha256(b"read").hexdigest()


def test_what_describes_the_weights_of_the_base_alone_is_not_copied_into_a_merge_of_it(trio, tmp_path):
    for name in ("alignment.json", "repair.json", "repair-french.json", "generation_config.json"):
        (trio[0] / name).write_text("{}")
    merged(recipe_of(*trio), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "generation_config.json" in names
    assert not names & {"alignment.json", "repair.json", "repair-french.json"}


def test_the_folder_that_one_is_in_is_not_replaced(trio, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", tmp_path / "here"):
        with pytest.raises(MergeError, match="is the folder that you are in: .* Name a new folder inside it"):
            merged(recipe_of(*trio), out)
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    (tmp_path / "disk").mkdir()
    with pytest.raises(MergeError, match="is a disk of its own"):
        merged(recipe_of(*trio), tmp_path / "disk")
    monkeypatch.undo()
    merged(recipe_of(*trio), tmp_path / "here")


def test_a_base_without_a_configuration_is_merged_with_a_note(trio, tmp_path):
    assert not any("config.json" in note for note in merged(recipe_of(*trio), tmp_path / "with").notes)
    (trio[0] / "config.json").unlink()
    notes = merged(recipe_of(*trio), tmp_path / "without").notes
    assert "The base has no config.json, so the merge has none: transformers cannot load it." in notes


def test_an_adapter_in_the_written_recipe_stands_behind_its_base_as_mergekit_wants_it(trio, tmp_path):
    adapter = write_adapter(tmp_path / "lora", {"a.lora_A.weight": noise(2, 8), "a.lora_B.weight": noise(6, 2)})
    report = merged(recipe_of(trio[0], adapter, trio[1], method="ties"), tmp_path / "out")
    written = Recipe.read(tmp_path / "out/recipe.yaml")
    assert [expert.source for expert in written.experts] == [f"{trio[0]}+{adapter}", str(trio[1])]
    assert merged(written, tmp_path / "again").sha256 == report.sha256


def test_shifted_models_differ():
    assert not (shifted(tiny(), 1)["a.weight"] == tiny()["a.weight"]).all()


def test_a_card_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "models/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert shown_source("models/base") == shown_source(str(tmp_path / "models/base")) == "base"
    assert shown_source("org/base@main") == "org/base" and shown_source("org/base+models/base") == "org/base+base"
