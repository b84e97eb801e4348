"""The same recipe gives the same tensors as mergekit 0.1.5: its answers are in mergekit.json (record_mergekit.py)."""

import json
from pathlib import Path

import pytest
import torch
from making import layer_of, noise

from mergelab import METHODS

CASES = json.loads(Path(__file__).with_name("mergekit.json").read_text(encoding="utf-8"))["cases"]


def name_of(case):
    shape = "x".join(map(str, torch.tensor(case["base"]).shape))
    return f"{case['method']}-{shape}-{case['settings']}"


def merged_here(case, dtype):
    base, models = (torch.tensor(case[key], dtype=torch.float64).to(dtype) for key in ("base", "models"))
    layer = layer_of(list(models - base), case["weights"], base)
    return base + METHODS[case["method"]](layer, **case["settings"]).delta


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 2e-6)], ids=str)
def test_the_merge_is_that_of_mergekit(case, dtype, tolerance):
    wanted = torch.tensor(case["merged"], dtype=torch.float64)
    assert (merged_here(case, dtype).double() - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_all_methods_that_mergekit_names_are_compared():
    assert {case["method"] for case in CASES} <= METHODS.keys()
    assert len({case["method"] for case in CASES}) == 16


def test_dare_at_a_density_keeps_the_sum_of_magnitudes_as_mergekit_does():
    layer = layer_of([noise(40, 50, seed=1)])
    for method in ("dare_linear", "dare_ties", "della", "della_linear"):
        merged = METHODS[method](layer, density=0.3)
        assert merged.delta.abs().sum().item() == pytest.approx(layer.deltas[0].abs().sum().item())
        kept = merged.delta != 0
        ratio = merged.delta[kept] / layer.deltas[0][kept]
        assert ratio.std() < 1e-9 * ratio.mean()
