"""Matrices of many rows: factorised and merged some rows at a time, to what they would be as a whole."""

from dataclasses import replace

import pytest
import torch
from making import finished, most_held, noise, recipe_of, shifted, tiny, write_adapter, write_model
from safetensors.torch import load_file

from mergelab import METHODS, inspect, merge, plan
from mergelab.align.opened import InCoordinates
from mergelab.maths import spectral
from mergelab.maths.tall import Pieces, Tall
from mergelab.merging.merge import _Job
from mergelab.merging.store import Lookups, Store
from mergelab.planning import parts

ROWS = 3000
SHAPE = (40, 6)


def tall(matrix, step):
    return Tall(matrix.shape, Pieces(-(-len(matrix) // step), lambda i: matrix[i * step : (i + 1) * step]))


@pytest.fixture
def models(tmp_path):
    """A base, an expert that leaves the last rows alone, an adapter, and the base itself."""
    base = tiny() | {"tall.weight": noise(*SHAPE, seed=9, dtype=torch.float32)}
    expert = shifted(base, 1)
    expert["tall.weight"][30:] = base["tall.weight"][30:]
    pair = {"tall.lora_A.weight": noise(2, 6), "tall.lora_B.weight": noise(40, 2)}
    pair |= {"embed.lora_embedding_A": noise(2, 11), "embed.lora_embedding_B": noise(6, 2)}
    folder = write_model(tmp_path / "base", base)
    return folder, write_model(tmp_path / "e", expert), write_adapter(tmp_path / "lora", pair), folder


@pytest.fixture
def in_parts(monkeypatch):
    """Calls what is given as it would be for matrices that are merged in parts."""

    def call(make):
        with monkeypatch.context() as patch:
            patch.setattr(parts, "PART", 24)
            patch.setattr(parts, "WHOLE", 24)
            return make()

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wanted", [None, lambda values: 20, spectral.no_vectors], ids=["all", "some", "none"])
def test_factors_of_rows_read_one_after_another_are_those_of_the_matrix_to_the_bit(dtype, wanted):
    matrix = noise(ROWS, 200, dtype=dtype)
    whole = spectral.factors(matrix, wanted)
    in_rows = spectral.factors(tall(matrix, parts.rows_at_a_time(matrix.shape)), wanted)
    assert not whole.left and not in_rows.left and whole.road == in_rows.road
    assert torch.equal(whole.values, in_rows.values) and torch.equal(whole.vectors, in_rows.vectors)


def test_kept_factors_are_found_whether_the_matrix_is_whole_or_in_rows(tmp_path):
    matrix = noise(ROWS, 200, dtype=torch.float32)
    kept = Store(tmp_path, 0, 1 << 30)
    made, was_there = kept.factors(tall(matrix, 100), None)
    found, is_there = kept.factors(matrix, None)
    assert (was_there, is_there) == (False, True) and torch.equal(made.vectors, found.vectors)


def test_a_matrix_of_zeros_has_no_directions():
    assert not len(spectral.factors(tall(torch.zeros(50, 6), 7)).values)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.rowwise])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tall_matrix_that_is_merged_in_rows_is_what_it_is_as_a_whole(models, tmp_path, in_parts, method, dtype):
    recipe = recipe_of(*models, method=method, decompose_embeddings=True, dtype=dtype)
    whole = finished(merge(plan(recipe), tmp_path / "whole"))
    work = plan(recipe)
    counts = in_parts(lambda: [len(parts.parts(work, n)) for n in ("tall.weight", "embed.weight", "a.weight")])
    assert counts == [10, 1, 1], "a table of 11 x 6 is not tall"
    reports = [in_parts(lambda n=n: finished(merge(work, tmp_path / str(n), workers=n))) for n in (1, 2, 4)]
    assert len({report.sha256["model.safetensors"] for report in reports}) == 1
    one, other = (load_file(tmp_path / folder / "model.safetensors")["tall.weight"] for folder in ("whole", "1"))
    assert torch.allclose(one.float(), other.float(), rtol=1e-6 if dtype == "float32" else 2**-7, atol=1e-7)
    for old, new in zip(whole.layers, reports[0].layers):
        assert old.name == new.name and old.facts.keys() == new.facts.keys()
        for fact in old.facts:
            assert old.facts[fact] == pytest.approx(new.facts[fact], rel=1e-5, abs=1e-6), (old.name, fact)


def test_its_spectra_are_seen_without_holding_it(models, in_parts):
    work = plan(recipe_of(*models, method="star"))
    whole, in_rows = finished(inspect(work)), in_parts(lambda: finished(inspect(work)))
    (old,), (new,) = ([layer for layer in report.layers if layer.name == "tall.weight"] for report in (whole, in_rows))
    assert old.curves.keys() == new.curves.keys() and [len(c) for c in new.curves["singular_values"]] == [6, 2, 0]
    for name, curve in old.curves.items():
        assert all(map(lambda a, b: a == pytest.approx(b, rel=1e-5), curve, new.curves[name])), name


def test_one_column_of_which_the_last_entry_is_the_bases(tmp_path, in_parts):
    base = {"tall.weight": noise(25, 1, dtype=torch.float32)}
    expert = shifted(base, 1)
    expert["tall.weight"][24] = base["tall.weight"][24]
    recipe = recipe_of(write_model(tmp_path / "base", base), write_model(tmp_path / "e", expert), method="star")
    in_parts(lambda: finished(merge(plan(recipe), tmp_path / "out")))
    assert torch.allclose(load_file(tmp_path / "out/model.safetensors")["tall.weight"], expert["tall.weight"])


def test_it_is_read_whole_where_its_rows_are_mixed(models, in_parts):
    work = plan(recipe_of(*models[:2], method="star"))
    view = object.__new__(InCoordinates)
    object.__setattr__(view, "mixes_rows", lambda name: name == "tall.weight")
    mixed = replace(work, experts=(replace(work.experts[0], checkpoint=view),))
    assert in_parts(lambda: len(parts.parts(work, "tall.weight"))) == 10
    assert in_parts(lambda: parts.parts(mixed, "tall.weight")) == [None]


@pytest.mark.parametrize("method", ["linear", "ties", "drm_h"])
def test_other_methods_do_not_pay_for_right_factors(models, in_parts, method):
    work, star = (plan(recipe_of(*models[:2], models[2], method=name)) for name in (method, "star"))
    assert not parts.by_rows(work, "tall.weight") and parts.by_rows(star, "tall.weight")
    assert in_parts(lambda: [parts.by_rows(star, name) for name in ("a.weight", "embed.weight")]) == [False, False]


def test_where_steps_follow_it_is_merged_as_a_whole(models, in_parts):
    recipe = recipe_of(*models, method="star", then={"svc": {}})
    assert in_parts(lambda: parts.parts(plan(recipe), "tall.weight")) == [None]


def test_another_eta_finds_its_factors(models, tmp_path, in_parts, monkeypatch):
    kept = Store(tmp_path / "kept", 1 << 20, 0)
    monkeypatch.setattr("mergelab.merging.merge.shared_store", lambda: kept)
    notes = []
    for eta in (40, 70):
        work = plan(recipe_of(*models[:2], method="star", settings={"eta": eta}))
        notes.append(in_parts(lambda work=work: finished(inspect(work))).notes)
    assert not any("kept from before" in note for note in notes[0])
    assert any("3 of 3 deltas" in note for note in notes[1])


def test_no_more_than_a_few_rows_of_it_are_held(tmp_path):
    base = {"embed.weight": noise(1 << 17, 16, dtype=torch.float32)}
    experts = [write_model(tmp_path / f"e{i}", shifted(base, i)) for i in (1, 2, 3)]
    recipe = recipe_of(write_model(tmp_path / "base", base), *experts, method="star", decompose_embeddings=True)
    work = plan(recipe)

    class Nowhere:
        put = note = staticmethod(lambda *_: None)

    job = _Job(work, "cpu", Lookups(Store(None, 0, 0)), Nowhere())
    held = most_held(lambda: job.done("embed.weight"))
    assert held < 4 * base["embed.weight"].numel() * 1.5, "three experts and the base are four, as they lie"
    assert parts.held(work, "embed.weight") / 3 < held < parts.held(work, "embed.weight") * 1.05
