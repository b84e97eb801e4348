"""Many workers: the same bytes, dearest first, in parts, and nothing left of those that were stopped."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from making import finished, most_held, noise, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import load_file

from mergelab import METHODS, MergeError, inspect, merge, plan
from mergelab.maths import inner
from mergelab.maths.spectral import LowRank
from mergelab.merging import memory, walk
from mergelab.merging.devices import Team, workers_for
from mergelab.merging.merge import _Job
from mergelab.merging.store import Lookups, shared_store
from mergelab.merging.walk import walked
from mergelab.planning import parts


def sha256(report):
    return report.sha256["model.safetensors"]


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_are_the_same_for_any_number_of_workers(trio, tmp_path, method):
    work = plan(recipe_of(*trio[: 1 + (METHODS[method].most or 2)], method=method))
    reports = [finished(merge(work, tmp_path / str(n), workers=n)) for n in (1, 2, 4)]
    assert len(set(map(sha256, reports))) == 1
    assert reports[0].layers == reports[1].layers == reports[2].layers
    assert [layer.name for layer in reports[2].layers] == list(work.names)


def test_an_analysis_is_the_same_for_any_number_of_workers(trio):
    work = plan(recipe_of(*trio, method="star"))
    one, four = (finished(inspect(work, workers=n)) for n in (1, 4))
    assert one.layers == four.layers and one.decomposed[0].curves["singular_values"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_merged_in_parts_gets_the_same_bytes_and_facts(tmp_path, monkeypatch, method, dtype):
    base = tiny(dtype=dtype)
    settings = {"density": 0.4} if "density" in METHODS[method].starting() else {}  # where something is trimmed at all
    experts = [write_model(tmp_path / f"e{i}", shifted(base, i)) for i in (1, 2)]
    pair = {"embed.lora_embedding_A": noise(2, 11), "embed.lora_embedding_B": noise(6, 2), "b.bias": noise(8)}
    experts.append(write_adapter(tmp_path / "lora", pair))
    experts = experts[: METHODS[method].most]
    recipe = recipe_of(write_model(tmp_path / "base", base), *experts, method=method, settings=settings)
    whole, seen = finished(merge(plan(recipe), tmp_path / "whole")), finished(inspect(plan(recipe)))
    monkeypatch.setattr(parts, "PART", 12)
    monkeypatch.setattr(parts, "WHOLE", 12)
    counts = [len(parts.parts(plan(recipe), name)) for name in ("embed.weight", "a.weight")]
    assert counts == {"never": [1, 1], "tables": [6, 1], "always": [6, 6]}[METHODS[method].entrywise]
    in_parts = finished(merge(plan(recipe), tmp_path / "parts"))
    assert sha256(whole) == sha256(in_parts)
    for one, other in zip(seen.layers, finished(inspect(plan(recipe))).layers):
        assert one.curves.keys() == other.curves.keys() and one.equal_to_base == other.equal_to_base
        for name, curve in one.curves.items():
            assert all(map(lambda a, b: a == pytest.approx(b, rel=1e-5), curve, other.curves[name])), name
    for one, other in zip(whole.layers, in_parts.layers):
        for fact in one.facts:
            assert one.facts[fact] == pytest.approx(other.facts[fact], rel=1e-5, abs=1e-6), (one.name, fact)


def test_tensors_that_nobody_has_changed_are_copied_and_said_to_be(trio, tmp_path, monkeypatch):
    frozen = load_file(trio[0] / "model.safetensors")["b.weight"]
    for i in (1, 2):
        write_model(tmp_path / f"frozen-{i}", shifted(tiny(), i) | {"b.weight": frozen})
    experts = tmp_path / "frozen-1", tmp_path / "frozen-2"
    plain = finished(merge(plan(recipe_of(trio[0], *experts, method="star", dtype="bfloat16")), tmp_path / "out"))
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["b.weight"], frozen.bfloat16())
    (layer,) = (layer for layer in plain.layers if layer.name == "b.weight")
    assert layer.equal_to_base == ("frozen-1", "frozen-2") and layer.facts["rank kept"] == (0.0, 0.0)
    assert "1 of 6 tensors are the base's own in every expert: copied, not computed." in plain.notes


def test_a_method_that_changes_even_what_nobody_has_changed_still_does(trio, tmp_path):
    recipe = recipe_of(trio[0], trio[0], trio[0], settings={"normalize": False})
    finished(merge(plan(recipe), tmp_path / "out"))
    base, out = (load_file(folder / "model.safetensors") for folder in (trio[0], tmp_path / "out"))
    assert torch.allclose(out["b.weight"], 2 * base["b.weight"])


def test_the_dearest_are_begun_first_and_each_is_done_once():
    begun = []
    costs = {"small": 1.0, "large": 9.0, "middle": 3.0}
    assert sorted(walk.walked(costs, lambda name: begun.append(name) or name, 1)) == sorted(costs)
    assert begun == ["large", "middle", "small"]


@pytest.mark.parametrize("end", ["close", "error"])
def test_what_is_not_begun_is_dropped_when_a_job_is_stopped_or_fails(end):
    begun, gate = [], threading.Event()

    def work(name):
        begun.append(name)
        if name == "1":
            if end == "error":
                raise MergeError("broken")
            return name
        gate.wait(10)

    job = walk.walked({str(n): -n for n in range(1, 50)}, work, 2)
    threading.Timer(1.0, gate.set).start()
    if end == "close":
        assert next(job) == "1"
        job.close()
    else:
        with pytest.raises(MergeError, match="broken"):
            next(job)
    assert len(begun) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mergelab_")]


def test_each_worker_computes_on_one_core_and_everyone_else_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        job = walk.walked({"a": 2, "b": 1}, lambda name: torch.get_num_threads(), 2)
        seen, elsewhere = [next(job)], []
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [*seen, *job] == [1, 1] and elsewhere == [2] == [torch.get_num_threads()]
    finally:
        torch.set_num_threads(before)


def test_the_number_of_workers_is_checked():
    assert workers_for("cpu") >= 1 and workers_for("cpu", 3) == 3
    for wrong in (0, 100_000):
        with pytest.raises(MergeError, match=f"There can be 1 to 1024 workers, not {wrong}. One per core is best"):
            workers_for("cpu", wrong)


def test_there_are_no_more_threads_than_tensors():
    seen = list(walk.walked({"a": 2, "b": 1}, lambda name: threading.active_count(), 1000))
    assert max(seen) <= threading.active_count() + 2
    assert list(walk.walked({}, str, 4)) == []


def test_threads_that_the_machine_does_not_give_are_one_error_and_nobody_waits(monkeypatch):
    begun, start = [], threading.Thread.start

    def scarce(thread):
        begun.append(thread)
        if len(begun) > 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(MergeError, match="5 threads cannot be begun here .* Use fewer '--workers'"):
        next(walked({str(n): 1.0 for n in range(9)}, str, workers=5))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mergelab_")]


@pytest.mark.parametrize(("free", "fit"), [(0, 4), (10**12, 4), (6_000, 2), (1, 1)])
def test_as_many_workers_merge_as_the_free_memory_has_room_for(trio, tmp_path, monkeypatch, free, fit):
    work = plan(recipe_of(*trio, method="star"))
    most = 4 * 66 * 3 * 3  # the embedding of the base and of two experts, and as much again twice
    assert max(parts.held(work, name) for name in work.names) == most
    monkeypatch.setattr(walk, "available", lambda: free)
    monkeypatch.setattr(walk, "workers_for", lambda device, asked: asked or 4)
    found, why = walk.workers_fitting(work, "cpu", None)
    assert found == fit
    assert [note.split(":")[0] for note in why] == [f"{fit} of 4 cores merge at a time"] * (fit < 4)
    assert walk.workers_fitting(work, "cpu", 7) == (7, ()), "whoever asks for a number gets it"
    assert set(why) == {note for note in finished(merge(work, tmp_path / "out")).notes if "cores" in note}


def test_free_memory_is_what_the_system_says_or_what_the_container_has_left(tmp_path, monkeypatch):
    whole = memory.available()
    assert 0 < whole <= memory.installed()
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 900000\n")
    for limit, left in {"5000": 4000, "900": 0, "max": None}.items():
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory.available() == left if left is not None else memory.available() > whole // 2
    (tmp_path / "memory.max").write_text("5000")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.available() == 2000


def test_processes_share_every_tensor_once_and_evenly():
    costs = {f"t{i}": float(i % 7 + 1) for i in range(40)}
    shares = [Team(rank, 3).share(costs) for rank in range(3)]
    assert sorted(sum(shares, [])) == sorted(costs)
    loads = [sum(costs[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= 7


def test_inner_products_are_those_of_the_entries_however_a_delta_is_held():
    thin = LowRank(noise(6, 2), noise(2, 9)), LowRank(noise(6, 3, seed=1), noise(3, 9, seed=2))
    deltas = [thin[0], noise(6, 9, seed=3), inner.unmoved(noise(6, 9)), thin[1], noise(6, 9, seed=4)]
    entries = torch.stack([delta.dense() if isinstance(delta, LowRank) else delta for delta in deltas]).flatten(1)
    assert torch.allclose(inner.inner_products(deltas), entries @ entries.T)
    cosines = [
        torch.cosine_similarity(entries[i], entries[j], dim=0) for i in (0, 1, 3, 4) for j in (0, 1, 3, 4) if i != j
    ]
    assert inner.mean_cosine(inner.inner_products(deltas)) == pytest.approx(float(sum(cosines)) / 12)
    assert inner.is_unmoved(deltas[2]) and not inner.is_unmoved(torch.zeros(6, 9))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lengths_are_right_where_squares_leave_the_range_of_float32(size):
    assert inner.norm(torch.full((5, 5), size)) == pytest.approx(5 * size, rel=1e-6)
    assert inner.finite(torch.full((5, 5), 3e38)) and not inner.finite(torch.tensor([1.0, float("nan")]))


def test_a_crew_that_is_ended_while_it_begins_lets_nobody_wait(monkeypatch):
    begun = ThreadPoolExecutor.submit

    def ended(pool, work):
        if pool._threads:
            raise KeyboardInterrupt
        return begun(pool, work)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", ended)
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        next(walked({"a": 1.0, "b": 1.0}, str, workers=2))
    assert torch.get_num_threads() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mergelab_")]


def test_what_is_looked_at_as_one_tensor_is_counted_as_one(tmp_path):
    tensors = {"embed.weight": noise(20_000, 64).float()}
    folders = [write_model(tmp_path / str(i), {"embed.weight": tensors["embed.weight"] + i}) for i in range(3)]
    work = plan(recipe_of(*folders, method="ties"))
    job = _Job(work, "cpu", Lookups(shared_store()), diagnose=True)
    most = most_held(lambda: job.done("embed.weight"))
    assert parts.held(work, "embed.weight") < most / 2
    assert most / 2 < parts.held(work, "embed.weight", whole=True) < 3 * most
