"""The directions that several matrices share: by left vectors or right ones, whole or some columns at a time."""

import pytest
import torch
from making import layer_of, noise

from mergelab import METHODS
from mergelab.maths import joint, selection
from mergelab.maths.joint import joint_directions
from mergelab.maths.spectral import LowRank

SHAPES = [(9, 70), (70, 9), (300, 70), (70, 300)]


def matrices(shape, thin=False):
    if thin:
        return [LowRank(noise(shape[0], 2, seed=i), noise(2, shape[1], seed=9 + i)) for i in range(3)]
    return [noise(*shape, seed=i, dtype=torch.float32) for i in range(3)]


def some(values):
    return 7


@pytest.mark.parametrize("thin", [False, True], ids=["full", "thin"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("few", [False, True], ids=["at once", "some columns at a time"])
def test_they_are_those_of_the_matrices_side_by_side(shape, thin, few, monkeypatch):
    if few:
        monkeypatch.setattr(joint, "LARGE", 640)
        monkeypatch.setattr(joint, "CHUNK", 640)
    given = matrices(shape, thin)
    whole = torch.cat([m.dense() if thin else m for m in given], 1).double()
    u, s, vt = torch.linalg.svd(whole, full_matrices=False)
    found = joint_directions(given, some)
    count = 6 if thin else 7
    assert torch.allclose(found.values, s[:count], rtol=1e-6) and len(found.spectrum) >= count
    rights = found.rights()
    assert rights.shape == (3, count, shape[1])
    signs = (rights.double() * torch.stack(vt[:count].split(shape[1], 1))).sum((0, 2)).sign()
    exact = torch.stack(vt[:count].split(shape[1], 1)) * signs[:, None]
    assert torch.allclose(rights.double(), exact, atol=1e-6)
    rows = noise(count, shape[1])
    assert torch.allclose(found.combined(rows).double(), (u[:, :count] * signs) @ rows, atol=1e-5)
    units = exact / exact.norm(dim=2, keepdim=True)
    row, column = torch.tensor([0, 5, 5, 2]), torch.tensor([shape[1] - 1, 0, 3, 8])
    for which in range(3):
        assert torch.allclose(found.exact_units(which, row, column), units[which, row, column], atol=1e-9)
        assert not len(found.exact_units(which, row[:0], column[:0]))


def test_left_vectors_are_not_formed_where_all_columns_are_fewer_than_the_rows():
    assert joint_directions(matrices((70, 300))).found.left and joint_directions(matrices((70, 70))).found.left
    assert not joint_directions(matrices((300, 70))).found.left
    assert joint_directions(matrices((300, 70), thin=True)).found.left, "a thin product has its own way"


@pytest.mark.parametrize("name", ["drm_h", "drm_v"])
@pytest.mark.parametrize("floor", [0.0, 0.01])
@pytest.mark.parametrize("drop", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("still", [False, True], ids=["dense", "with columns that experts leave alone"])
def test_drm_of_tall_matrices_does_not_depend_on_which_side_is_known(name, floor, drop, still, monkeypatch):
    deltas = matrices((300, 70))
    for i, delta in enumerate(deltas if still else ()):
        delta[:, i::3] = 0
        delta[:, 60:] = 0
    given = layer_of([m if name == "drm_h" else m.T.contiguous() for m in deltas])
    one = METHODS[name](given, floor=floor, drop=drop)
    assert not still or not (one.delta[:, 60:] if name == "drm_h" else one.delta[60:]).any()
    real = joint.joint_factors
    monkeypatch.setattr(joint, "joint_factors", lambda matrices, wanted, left: real(matrices, wanted))
    other = METHODS[name](given, floor=floor, drop=drop)
    assert torch.allclose(one.delta, other.delta, atol=2e-6 * float(other.delta.abs().max()))
    for fact, value in other.facts.items():
        assert one.facts[fact] == pytest.approx(value, abs=1e-6), fact


def test_what_lies_within_two_bounds_is_counted_through_all_pieces(monkeypatch):
    monkeypatch.setattr(selection, "FEW", 3)
    values = noise(5000, dtype=torch.float32)
    for dtype in (torch.float32, torch.float16):
        given = values.to(dtype)
        above, index = selection.within(given.split(700), 0.25, 1.5)
        assert above == int((given > 1.5).sum())
        assert torch.equal(index, ((given >= 0.25) & (given <= 1.5)).nonzero().flatten())
    assert selection.within([], 0, 1)[0] == 0
