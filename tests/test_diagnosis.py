"""Diagnostics are what they say, by arithmetic done here; an expert of another base is remarked upon."""

import pytest
import torch
from making import finished, layer_of, noise, recipe_of, tiny, write_model

from mergelab import Merged, inspect, plan
from mergelab.maths.spectral import LowRank
from mergelab.merging.diagnosis import diagnosis, overlaps, remarks, rounding_error, surviving_share
from mergelab.report import FACTS, LayerReport


def test_a_change_below_the_grid_of_the_format_is_lost_and_one_upon_it_is_not():
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    delta = torch.tensor([2.0**-7, 2.0**-12, 0.0, 2.0**-7])
    assert surviving_share(base, delta, torch.bfloat16) == pytest.approx(2 / 3)
    assert rounding_error(base, delta, torch.bfloat16) == pytest.approx(2.0**-12 / delta.norm().item())
    assert (surviving_share(base, delta, torch.float32), rounding_error(base, delta, torch.float32)) == (1, 0)
    assert (surviving_share(base, 0 * delta, torch.float16), rounding_error(base, 0 * delta, torch.float16)) == (1, 0)


def test_bfloat16_loses_much_of_a_change_of_one_percent_and_little_of_one_of_the_weights_size():
    base, step = noise(200, 200, dtype=torch.float32), noise(200, 200, seed=1, dtype=torch.float32)
    small, large = rounding_error(base, step / 100, torch.bfloat16), rounding_error(base, step, torch.bfloat16)
    assert 0.1 < small < 0.4 and large < 0.01


def test_overlap_is_all_for_equal_changes_none_for_orthogonal_ones_and_by_chance_between():
    u, v = torch.linalg.qr(noise(30, 30)).Q, torch.linalg.qr(noise(20, 20, seed=1)).Q
    one, other = (LowRank(u[:, i : i + 3], v[:, i : i + 3].T) for i in (0, 3))
    assert overlaps(layer_of([one, other])) == pytest.approx((0, 0), abs=1e-12)
    assert overlaps(layer_of([one, one]))[0] == pytest.approx(2 / 3)  # half of three equal values is two of them
    assert overlaps(layer_of([one])) == (0,)
    assert overlaps(layer_of([one, torch.zeros(30, 20, dtype=torch.float64)])) == (0, 0)
    for shape in ((20, 40), (40, 20)):
        dense = [noise(*shape, seed=i) for i in range(3)]
        assert all(0.2 < share < 0.45 for share in overlaps(layer_of(dense)))


def test_inspect_reports_it_only_when_asked_and_every_fact_is_explained(trio):
    plain, full = (finished(inspect(plan(recipe_of(*trio, method="star")), diagnose=asked)) for asked in (False, True))
    new = {"entries that survive", "rounding error", "merged rounding error", "subspace overlap"}
    assert not new & {*plain.facts} and new <= {*full.facts} <= FACTS.keys()
    assert plain.layers[0].curves == full.layers[0].curves
    for one, other in zip(plain.layers, full.layers):
        assert one.facts.items() <= other.facts.items()


def test_the_dtype_is_that_of_the_written_weights(trio):
    found = {}
    for dtype in (None, "bfloat16"):
        report = finished(inspect(plan(recipe_of(*trio, dtype=dtype)), diagnose=True))
        found[dtype] = report.layers[0].facts["merged rounding error"]
    assert found[None] < 1e-5 < found["bfloat16"]


def test_an_expert_of_another_base_and_one_that_is_the_base_are_remarked_upon(trio, tmp_path):
    stranger = write_model(tmp_path / "stranger", tiny(seed=50))
    copy = write_model(tmp_path / "copy", tiny())
    notes = finished(inspect(plan(recipe_of(*trio, stranger, copy)))).notes
    assert any(note.startswith("Expert 'stranger' lies 1.") and "Is this its base?" in note for note in notes)
    assert "Expert 'copy' equals the base in every tensor." in notes
    assert not any("expert-1" in note for note in notes)


def test_remarks_need_no_matrix():
    layer = LayerReport("bias", (4,), False, {"change": (9.0,)}, equal_to_base=("one",))
    assert remarks([layer], ["one"]) == ("Expert 'one' equals the base in every tensor.",)
    assert remarks([], ["one"]) == ()


def test_a_tensor_that_is_no_matrix_has_no_spectrum_to_speak_of():
    layer = layer_of([noise(5), noise(5, seed=1)])
    facts = diagnosis(layer, Merged(layer.dense.mean(0)), torch.float16)
    assert "subspace overlap" not in facts and 0 <= facts["sign conflicts"] <= 1
