"""What every merge method promises. A new file in mergelab/methods is tested here without a line of its own."""

import math
from dataclasses import replace

import pytest
import torch
from making import layer_of, noise

from mergelab import METHODS, Knob, MergeError, Switch
from mergelab.maths.spectral import LowRank

SHAPES = [(), (7,), (6, 9), (9, 6), (1, 5), (5, 1), (3, 4, 5), (2, 3, 2, 2), (0, 4)]
WEIGHTS = [1.0, 0.5, 1.7]

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def deltas_of(*shape, count=3):
    return [noise(*shape, seed=i) for i in range(count)]


def layer(*shape, weights=WEIGHTS):
    drawn = layer_of(deltas_of(*shape), weights)
    return replace(drawn, decompose=len(shape) == 2 and 0 not in shape)


def assert_close(one, other, share):
    assert torch.linalg.vector_norm(one.double() - other.double()) <= share * torch.linalg.vector_norm(other.double())


@every_method
@every_shape
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_merge_has_the_shape_of_the_layer_and_is_finite(method, shape, dtype):
    given = layer(*shape)
    given = replace(given, base=given.base.to(dtype), deltas=tuple(delta.to(dtype) for delta in given.deltas))
    merged = method(given)
    assert merged.delta.shape == shape
    assert merged.delta.dtype == dtype
    assert merged.delta.isfinite().all()


@every_method
@every_shape
def test_zero_deltas_give_the_base(method, shape):
    given = layer(*shape)
    merged = method(replace(given, deltas=tuple(torch.zeros_like(delta) for delta in given.deltas)))
    assert (merged.delta == 0).all()
    assert_facts_are_numbers(merged, experts=3)


@every_method
def test_experts_that_differ_from_the_base_in_one_block_or_not_at_all_are_fine(method):
    deltas = deltas_of(8, 8)
    deltas[0][:, :5] = 0
    deltas[1][3:] = 0
    deltas[2][:] = 0
    merged = method(layer_of(deltas))
    assert merged.delta.isfinite().all()
    assert_facts_are_numbers(merged, experts=3)


@every_method
@every_shape
def test_equal_experts_are_fine(method, shape):
    given = layer(*shape)
    assert method(replace(given, deltas=given.deltas[:1] * 3)).delta.isfinite().all()


@every_method
@every_shape
def test_no_input_is_changed(method, shape):
    given = layer(*shape)
    before = [tensor.clone() for tensor in (given.base, *given.deltas, given.weights)]
    method(given)
    assert all(map(torch.equal, before, (given.base, *given.deltas, given.weights)))


@every_method
@every_shape
def test_the_order_of_experts_does_not_matter(method, shape):
    given = layer(*shape)
    turned = replace(given, deltas=given.deltas[::-1], weights=given.weights.flip(0))
    merged, same = method(given), method(turned)
    assert_close(same.delta, merged.delta, 1e-9)
    for name, fact in merged.facts.items():
        wanted = fact[::-1] if isinstance(fact, tuple) else fact
        assert same.facts[name] == pytest.approx(wanted), name


@every_method
@every_shape
def test_scaling_all_deltas_scales_the_merge(method, shape):
    given = layer(*shape)
    larger = replace(given, deltas=tuple(3 * delta for delta in given.deltas))
    assert_close(method(larger).delta, 3 * method(given).delta, 1e-9)


@every_method
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_very_small_and_very_large_deltas_are_fine(method, size):
    given = layer_of([(size * delta).float() for delta in deltas_of(6, 9)])
    merged = method(given)
    assert merged.delta.isfinite().all()
    assert merged.delta.abs().max() > 0
    assert_facts_are_numbers(merged, experts=3)


@every_method
@every_shape
def test_float32_and_float64_agree(method, shape):
    single = layer(*shape)
    single = replace(single, base=single.base.float(), deltas=tuple(delta.float() for delta in single.deltas))
    double = replace(single, base=single.base.double(), deltas=tuple(delta.double() for delta in single.deltas))
    assert_close(method(single).delta, method(double).delta, 1e-5)


@every_method
def test_dense_and_low_rank_deltas_agree(method):
    low = [LowRank(noise(9, 2 + i, seed=i), noise(2 + i, 14, seed=10 + i)) for i in range(3)]
    thin, full = layer_of(low, WEIGHTS), layer_of([delta.dense() for delta in low], WEIGHTS)
    mixed = layer_of([low[0], full.deltas[1], low[2]], WEIGHTS, base=full.base)
    assert_close(method(thin).delta, method(full).delta, 1e-6)
    assert_close(method(mixed).delta, method(full).delta, 1e-6)


@every_method
def test_how_tensors_lie_in_memory_does_not_matter(method):
    given = layer(60, 9)
    turned = [delta.T.contiguous().T for delta in given.deltas]
    merged = method(replace(given, base=given.base.T.contiguous().T, deltas=tuple(turned)))
    assert_close(merged.delta, method(given).delta, 1e-9)


@every_method
def test_a_delta_of_zeros_that_takes_no_memory_is_fine(method):
    given = layer(60, 9)
    nothing = given.base.new_zeros(()).expand(60, 9)
    light = method(replace(given, deltas=(given.deltas[0], nothing, given.deltas[2])))
    full = method(replace(given, deltas=(given.deltas[0], nothing.clone(), given.deltas[2])))
    assert_close(light.delta, full.delta, 1e-9)


def assert_facts_are_numbers(merged, experts):
    for name, fact in merged.facts.items():
        numbers = fact if isinstance(fact, tuple) else (fact,)
        assert len(numbers) in (1, experts), name
        assert all(type(number) is float and math.isfinite(number) for number in numbers), name


@every_method
@every_shape
def test_every_fact_is_a_number_or_one_per_expert(method, shape):
    merged = method(layer(*shape))
    assert_facts_are_numbers(merged, experts=3)
    for curve in merged.curves.values():
        assert curve.dim() == 1 or (curve.dim() == 2 and len(curve) == 3)


@every_method
@every_shape
def test_the_ends_of_every_knob_and_both_sides_of_every_switch_work(method, shape):
    given = layer(*shape)
    for setting in method.settings:
        for value in (setting.knob.low, setting.knob.high) if isinstance(setting.knob, Knob) else (True, False):
            assert method(given, **{setting.name: value}).delta.isfinite().all(), (setting.name, value)


@every_method
def test_as_few_experts_as_it_says_are_enough(method):
    assert method(layer_of(deltas_of(6, 9, count=method.fewest))).delta.isfinite().all()


@every_method
def test_every_setting_has_help_and_a_default_that_it_allows(method):
    for setting in method.settings:
        assert setting.knob.help
        assert setting.checked(setting.default, method.title) == setting.default
        assert type(setting.default) is (bool if isinstance(setting.knob, Switch) else float)
        start = getattr(setting.knob, "start", None)
        assert start is None or setting.checked(start, method.title) == start


@every_method
def test_a_setting_that_it_does_not_have_is_refused(method):
    with pytest.raises(MergeError, match="has no setting 'colour'"):
        method.checked({"colour": 1})


@every_method
@pytest.mark.parametrize("wrong", ["0.5", None, [0.5], float("nan"), float("inf"), 10**400, -5], ids=str)
def test_a_setting_out_of_its_range_or_of_another_type_is_refused(method, wrong):
    for setting in method.settings:
        with pytest.raises(MergeError, match=f"'{setting.name}' of {method.title} must be"):
            method.checked({setting.name: wrong})


@every_method
def test_its_docstring_has_a_summary_and_equations_and_its_paper_is_named(method):
    assert method.summary.endswith(".") and len(method.summary) < 120
    assert "=" in method.doc.split("\n", 1)[1]
    assert method.title and len(method.paper.split(".")) == 2


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.entrywise], ids=lambda method: method.name)
@pytest.mark.parametrize("shape", [(7,), (6, 9), (3, 4, 5)], ids=str)
def test_an_entrywise_method_merges_a_table_part_by_part_to_the_same_bytes(method, shape):
    whole = replace(layer(*shape), decompose=False)
    parts = [slice(0, 1), slice(1, 3), slice(3, None)]
    made = [method(replace(whole, base=whole.base[p], deltas=tuple(d[p] for d in whole.deltas))) for p in parts]
    assert torch.equal(torch.cat([merged.delta for merged in made]), method(whole).delta)
    assert not any(merged.facts or merged.curves for merged in made)
