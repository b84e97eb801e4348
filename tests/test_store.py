"""Kept factors: found again by content, the same to the bit, and never trusted if anything about them is off."""

import os
import threading
import time
from dataclasses import replace

import pytest
import torch
from making import finished, merged, noise, recipe_of, reused, shifted, tiny, write_model
from safetensors.torch import load_file, save_file

from mergelab import MergeError, inspect, plan
from mergelab.maths import spectral
from mergelab.maths.inner import unmoved
from mergelab.maths.spectral import LowRank, no_vectors
from mergelab.merging import store
from mergelab.merging.store import Lookups, Store, shared_store

MATRIX = noise(100, 130, dtype=torch.float32)


def quarter(values):
    return 20


def a_store(tmp_path, memory=1 << 30, disk=1 << 30):
    return Store(tmp_path / "factors", memory, disk)


def entries(tmp_path):
    return sorted((tmp_path / "factors").rglob("*.safetensors"))


def same(one, other):
    return torch.equal(one.values, other.values) and torch.equal(one.vectors, other.vectors) and one.left == other.left


def first(factors, count):
    return replace(factors, vectors=factors.vectors[:, :count])


@pytest.mark.parametrize("wanted", [None, quarter, lambda values: 60, no_vectors], ids=["all", "quarter", "60", "none"])
def test_factors_are_the_same_to_the_bit_whether_computed_remembered_or_read(tmp_path, wanted):
    kept = a_store(tmp_path)
    made, was_there = kept.factors(MATRIX, wanted)
    assert not was_there and made.suffice(wanted)
    for again in (kept, a_store(tmp_path)):
        found, was_there = again.factors(MATRIX.clone(), wanted)
        assert was_there and same(found, made) and found.road == made.road
    alone, _ = Store(None, 0, 0).factors(MATRIX, wanted)
    assert alone.suffice(wanted) and same(alone, first(made, alone.vectors.shape[1]))


def test_what_is_found_does_not_depend_on_what_was_asked_before(tmp_path):
    fresh, _ = Store(None, 0, 0).factors(MATRIX, quarter)
    for before in (None, no_vectors, lambda values: 70):
        kept = a_store(tmp_path / "other" / str(before is None))
        kept.factors(MATRIX, before)
        assert same(first(kept.factors(MATRIX, quarter)[0], 20), fresh)
        assert kept.factors(MATRIX, quarter)[1]


def test_the_factors_are_those_of_the_matrix():
    found, _ = Store(None, 0, 0).factors(MATRIX, quarter)
    exact = torch.linalg.svdvals(MATRIX.double())
    assert torch.allclose(found.values, exact, rtol=1e-9)
    near = spectral.leading(MATRIX, found, 20).dense().double()
    assert torch.linalg.vector_norm(MATRIX - near) == pytest.approx(float(exact[20:].square().sum().sqrt()), rel=1e-5)


@pytest.mark.parametrize("delta", [unmoved(MATRIX), LowRank(noise(100, 3), noise(3, 130))], ids=["unmoved", "low rank"])
def test_what_is_quick_to_find_is_not_kept(tmp_path, delta):
    for _ in range(2):
        lookups = Lookups(a_store(tmp_path))
        (found,) = lookups.factorise([delta])([0], None)
        assert len(found.values) in (0, 3) and not lookups.notes
    assert not entries(tmp_path)


def harmed(path, harm, tmp_path):
    whole, data = path.read_bytes(), bytearray(path.read_bytes())
    if harm == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "altered":
        data[-5] ^= 1
        path.write_bytes(bytes(data))
    elif harm in ("left", "road"):  # a bit of what is said of the tensors
        at = whole.index(f'"{harm}":"'.encode()) + len(harm) + 4
        data[at] ^= 1
        path.write_bytes(bytes(data))
    elif harm == "foreign":
        other = Store(tmp_path / "foreign", 0, 1 << 30)
        other.factors(noise(100, 130, seed=5, dtype=torch.float32), quarter)
        path.write_bytes(next((tmp_path / "foreign").rglob("*.safetensors")).read_bytes())
    elif harm == "other tensors":
        save_file({"a": torch.zeros(3)}, path)
    elif harm == "a folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("harm", ["torn", "empty", "altered", "left", "road", "foreign", "other tensors", "a folder"])
def test_an_entry_that_is_off_in_any_way_is_computed_anew(tmp_path, harm):
    made, _ = a_store(tmp_path).factors(MATRIX, quarter)
    (path,) = entries(tmp_path)
    harmed(path, harm, tmp_path)
    found, was_there = a_store(tmp_path).factors(MATRIX, quarter)
    assert same(found, made) and not was_there
    if harm != "a folder":
        assert a_store(tmp_path).factors(MATRIX, quarter)[1], "the entry was not mended"


def test_memory_and_disk_are_bounded_and_what_is_unused_for_longest_goes_first(tmp_path):
    matrices = [noise(100, 100, seed=i, dtype=torch.float32) for i in range(6)]
    size = 100 * 8 + 100 * 25 * 4
    kept = a_store(tmp_path, memory=3 * size, disk=4 * (size + 1000))
    for i, matrix in enumerate(matrices):
        kept.factors(matrix, quarter)
        for path in entries(tmp_path):
            os.utime(path, (i, path.stat().st_mtime if path.stat().st_mtime < 10 else i))
    assert kept._held_bytes <= 3 * size and len(kept._held) == 3
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 4 * (size + 1000)
    found = [a_store(tmp_path).factors(matrix, quarter)[1] for matrix in reversed(matrices)]
    assert found[0] and not found[-1]


@pytest.mark.parametrize("trouble", ["a file in its place", "no room"])
def test_a_folder_that_takes_nothing_is_said_and_changes_nothing(trio, tmp_path, monkeypatch, trouble):
    monkeypatch.setattr(store, "SMALL", 0)
    plain = merged(recipe_of(*trio, method="star"), tmp_path / "plain")
    if trouble == "no room":
        monkeypatch.setattr(store, "save_file", full)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("MERGELAB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(store, "VERSION", "other")
    store._made_by.cache_clear()
    shared_store.cache_clear()
    report = merged(recipe_of(*trio, method="star"), tmp_path / "out")
    store._made_by.cache_clear()
    assert report.sha256 == plain.sha256
    assert [note for note in report.notes if note.startswith("Factors cannot be kept in")]


def full(*arguments, **more):
    raise OSError(28, "No space left on device")


def test_bounds_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("MERGELAB_STORE_MB", "many")
    with pytest.raises(MergeError, match="MERGELAB_STORE_MB must be a whole number of megabytes, not 'many'"):
        shared_store()


def test_a_user_without_a_home_is_told_that_nothing_is_kept_on_disk(monkeypatch):
    monkeypatch.setenv("MERGELAB_CACHE", "~nobody-of-this-name/factors")
    fresh = store.shared_store.__wrapped__()
    assert fresh.folder is None and "set MERGELAB_CACHE to a folder" in fresh.troubles[0]
    assert fresh.factors(MATRIX, quarter) and fresh.factors(MATRIX, quarter)[1], "it is kept in memory all the same"


def test_what_a_killed_process_had_begun_to_write_is_removed_when_it_is_old(tmp_path):
    for name, age in (("old", 2 * store.ABANDONED), ("new", 0)):
        path = tmp_path / "factors/ab" / f"{name}.fresh"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, times=(time.time() - age,) * 2)
    a_store(tmp_path).factors(MATRIX, quarter)
    assert [path.stem for path in tmp_path.rglob("*.fresh")] == ["new"]


def test_nothing_is_kept_on_disk_if_the_cache_is_off(monkeypatch):
    monkeypatch.setenv("MERGELAB_CACHE", "off")
    assert shared_store().folder is None


@pytest.fixture
def family(tmp_path):
    """A recipe with two matrices that are large enough to be kept on disk, for an η."""
    base = tiny() | {"c.weight": noise(120, 110).bfloat16(), "d.weight": noise(100, 140).float()}
    folders = [write_model(tmp_path / "base", base)]
    folders += [write_model(tmp_path / f"expert-{i}", shifted(base, i)) for i in (1, 2)]
    return lambda eta, **more: recipe_of(*folders, method="star", settings={"eta": eta}, **more)


def test_a_merge_at_one_eta_then_another_then_the_first_has_the_first_bytes(family, tmp_path):
    first, other, again = (merged(family(eta), tmp_path / f"{i}") for i, eta in enumerate((20.0, 90.0, 20.0)))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.layers == again.layers
    assert reused("8 of 8") in again.notes


def test_another_session_finds_what_the_first_has_kept_and_writes_the_same_bytes(family, tmp_path):
    first = merged(family(20.0), tmp_path / "first")
    shared_store.cache_clear()
    second = merged(family(20.0), tmp_path / "second")
    assert second.sha256 == first.sha256
    assert reused("4 of 8") in second.notes  # small ones are not kept on disk


def test_an_analysis_is_of_use_to_the_merge_that_follows(family, tmp_path):
    finished(inspect(plan(family(20.0))))
    assert reused("8 of 8") in merged(family(20.0), tmp_path / "out").notes


def test_a_changed_expert_is_not_mistaken_for_the_old_one(family, tmp_path):
    merged(family(20.0), tmp_path / "first")
    file = tmp_path / "expert-1/model.safetensors"
    moved = load_file(file)
    moved["d.weight"][3, 5] += 1e-3
    save_file(moved, file)
    report = merged(family(20.0), tmp_path / "second")
    assert reused("7 of 8") in report.notes


def test_another_eta_in_the_same_session_hashes_nothing_again_but_what_has_changed(family, tmp_path, monkeypatch):
    hashed, content = [], store._content
    monkeypatch.setattr(store, "_content", lambda delta: hashed.append(1) or content(delta))
    merged(family(20.0), tmp_path / "first")
    assert len(hashed) == 8
    merged(family(90.0), tmp_path / "second")
    assert len(hashed) == 8
    file = tmp_path / "expert-1/model.safetensors"
    save_file(load_file(file), file)
    merged(family(90.0), tmp_path / "third")
    assert len(hashed) == 12


def test_without_a_store_the_bytes_are_the_same_and_nothing_is_hashed(family, tmp_path, monkeypatch):
    kept = merged(family(20.0), tmp_path / "kept")
    monkeypatch.setenv("MERGELAB_CACHE", "off")
    monkeypatch.setenv("MERGELAB_STORE_MB", "0")
    shared_store.cache_clear()
    monkeypatch.setattr(store, "_content", None)
    assert merged(family(20.0), tmp_path / "out").sha256 == kept.sha256


def test_many_threads_may_ask_at_once(tmp_path):
    kept = a_store(tmp_path, memory=30_000)
    matrices = [noise(100, 100, seed=i % 4, dtype=torch.float32) for i in range(12)]
    wanted = [kept.factors(matrix, quarter)[0] for matrix in matrices]
    found, lookups = {}, Lookups(kept)

    def ask(i):
        found[i] = lookups._factors(matrices[i], quarter)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[i], wanted[i]) for i in range(12))
    assert lookups.asked == 12 and lookups.notes
