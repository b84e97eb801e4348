"""What every merge method promises. A new file in mergelab/methods is tested here without a line of its own."""

import math
import re
from dataclasses import replace

import pytest
import torch
from making import layer_of, most_held, noise

from mergelab import METHODS, STEPS, Choice, Knob, MergeError, Switch
from mergelab.maths.spectral import LowRank
from mergelab.method import Whole, shares
from mergelab.report import FACTS

SHAPES = [(), (7,), (6, 9), (9, 6), (1, 5), (5, 1), (3, 4, 5), (2, 3, 2, 2), (0, 4)]
WEIGHTS = [1.0, 0.5, 1.7]

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def those(names):
    """A test that runs over some of the methods."""
    return pytest.mark.parametrize("method", [METHODS[name] for name in sorted(names)], ids=sorted(names))


every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


# What these methods are by their definition: functions of whole weights, or of the absolute size of a change.
NOT_FREE_OF_SCALE = {"slerp", "karcher", "nearswap", "pcb"}
STOPS_AT_TINY_CHANGES = {"model_stock"}  # as mergekit's does


# One expert of weight 1 is what these merge to.
NOT_THE_LONE_ONE = {"sce", "consensus", "iso_c", "iso_cts", "slerp", "nearswap", "karcher", "pcb"}
LONE = METHODS.keys() - NOT_THE_LONE_ONE - {"model_stock", "nuslerp"}  # these two need two
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear", "knots_dare"}
# Turning all deltas by the same rotation turns the merge: of outputs, of inputs.
TURNS_WITH_OUTPUTS = {"star", "tsv_m", "iso_c", "iso_cts", "swudi", "knots_ties", "drm_h", "linear", "metagpt"}
TURNS_WITH_INPUTS = {"star", "tsv_m", "iso_c", "iso_cts", "swudi", "drm_v", "linear", "metagpt"}
NOT_BLIND_TO_ORDER_OF_NEURONS = RANDOM


def count_for(method):
    return min(3, method.most or 3)


def deltas_of(*shape, count=3):
    return [noise(*shape, seed=i) for i in range(count)]


def layer(method, *shape):
    count = count_for(method)
    drawn = layer_of(deltas_of(*shape, count=count), WEIGHTS[:count])
    return replace(drawn, decompose=len(shape) == 2 and 0 not in shape)


def turned(given):
    """The same layer with its experts in the opposite order."""
    back = {"deltas": given.deltas[::-1], "weights": given.weights.flip(0), "experts": given.experts[::-1]}
    return replace(given, **back)


def assert_close(one, other, share):
    assert torch.linalg.vector_norm(one.double() - other.double()) <= share * torch.linalg.vector_norm(other.double())


@every_method
@every_shape
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_merge_has_the_shape_of_the_layer_and_is_finite(method, shape, dtype):
    given = layer(method, *shape)
    given = replace(given, base=given.base.to(dtype), deltas=tuple(delta.to(dtype) for delta in given.deltas))
    merged = method(given)
    assert merged.delta.shape == shape
    assert merged.delta.dtype == dtype
    assert merged.delta.isfinite().all()


@every_method
@every_shape
def test_zero_deltas_give_the_base(method, shape):
    given = layer(method, *shape)
    merged = method(replace(given, deltas=tuple(torch.zeros_like(delta) for delta in given.deltas)))
    assert (merged.delta == 0).all()
    assert_facts_are_numbers(merged, experts=count_for(method))


@every_method
def test_experts_that_differ_from_the_base_in_one_block_or_not_at_all_are_fine(method):
    one, other, none = deltas_of(8, 8)
    one[:, :5], other[3:], none[:] = 0, 0, 0
    count = count_for(method)
    for deltas in ([one, other, none], [none, other, one]):
        merged = method(layer_of(deltas[:count]))
        assert merged.delta.isfinite().all()
        assert_facts_are_numbers(merged, experts=count)


@every_method
@every_shape
def test_equal_experts_are_fine(method, shape):
    given = layer(method, *shape)
    assert method(replace(given, deltas=given.deltas[:1] * count_for(method))).delta.isfinite().all()


@every_method
@every_shape
def test_no_input_is_changed(method, shape):
    given = layer(method, *shape)
    before = [tensor.clone() for tensor in (given.base, *given.deltas, given.weights)]
    method(given)
    assert all(map(torch.equal, before, (given.base, *given.deltas, given.weights)))


@every_method
@every_shape
def test_the_order_of_experts_does_not_matter(method, shape):
    given = layer(method, *shape)
    merged, same = method(given), method(turned(given))
    assert_close(same.delta, merged.delta, 1e-9)
    for name, fact in merged.facts.items():
        wanted = fact[::-1] if isinstance(fact, tuple) else fact
        assert same.facts[name] == pytest.approx(wanted), name


@those(METHODS.keys() - NOT_FREE_OF_SCALE)
@every_shape
def test_scaling_all_deltas_scales_the_merge(method, shape):
    given = layer(method, *shape)
    larger = replace(given, deltas=tuple(3 * delta for delta in given.deltas))
    assert_close(method(larger).delta, 3 * method(given).delta, 1e-9)


@every_method
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_very_small_and_very_large_deltas_are_fine(method, size):
    count = count_for(method)
    merged = method(layer_of([(size * delta).float() for delta in deltas_of(6, 9, count=count)]))
    assert merged.delta.isfinite().all()
    assert merged.delta.abs().max() > 0 or method.name in STOPS_AT_TINY_CHANGES
    assert_facts_are_numbers(merged, experts=count)


@every_method
@every_shape
def test_float32_and_float64_agree(method, shape):
    single = layer(method, *shape)
    single = replace(single, base=single.base.float(), deltas=tuple(delta.float() for delta in single.deltas))
    double = replace(single, base=single.base.double(), deltas=tuple(delta.double() for delta in single.deltas))
    assert_close(method(single).delta, method(double).delta, 1e-5)


@every_method
def test_dense_and_low_rank_deltas_agree(method):
    count = count_for(method)
    low = [LowRank(noise(9, 2 + i, seed=i), noise(2 + i, 14, seed=10 + i)) for i in range(count)]
    thin, full = layer_of(low, WEIGHTS[:count]), layer_of([delta.dense() for delta in low], WEIGHTS[:count])
    mixed = replace(full, deltas=(low[0], *full.deltas[1:2], *low[2:]))
    assert_close(method(thin).delta, method(full).delta, 1e-6)
    assert_close(method(mixed).delta, method(full).delta, 1e-6)


@every_method
def test_how_tensors_lie_in_memory_does_not_matter(method):
    given = layer(method, 60, 9)
    turned = [delta.T.contiguous().T for delta in given.deltas]
    merged = method(replace(given, base=given.base.T.contiguous().T, deltas=tuple(turned)))
    assert_close(merged.delta, method(given).delta, 1e-9)


@every_method
def test_a_delta_of_zeros_that_takes_no_memory_is_fine(method):
    given = layer(method, 60, 9)
    nothing = given.base.new_zeros(()).expand(60, 9)
    light, full = (
        method(replace(given, deltas=(*given.deltas[:-1], still))) for still in (nothing, nothing.contiguous())
    )
    assert_close(light.delta, full.delta, 1e-9)


def assert_facts_are_numbers(merged, experts):
    assert merged.facts.keys() <= FACTS.keys(), "a new fact needs its line in report.FACTS"
    for name, fact in merged.facts.items():
        numbers = fact if isinstance(fact, tuple) else (fact,)
        assert len(numbers) in (1, experts), name
        assert all(type(number) is float and math.isfinite(number) for number in numbers), name


@every_method
@every_shape
def test_every_fact_is_a_number_or_one_per_expert(method, shape):
    merged = method(layer(method, *shape))
    assert_facts_are_numbers(merged, experts=count_for(method))
    for curve in merged.curves.values():
        assert curve.dim() == 1 or (curve.dim() == 2 and len(curve) == count_for(method))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@every_method
@every_shape
def test_every_step_can_be_taken_after_every_method(step, method, shape):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        given = layer(method, *shape)
        given = replace(given, base=given.base.to(dtype), deltas=tuple(delta.to(dtype) for delta in given.deltas))
        merged = method(given)
        before = merged.delta.clone()
        for setting in step.settings:
            for value in (setting.default, *ends_of(setting.knob)):
                after = step(given, merged, **{setting.name: value})
                assert after.delta.shape == shape and after.delta.dtype == dtype and after.delta.isfinite().all()
                assert merged.facts.items() <= after.facts.items()
                assert_facts_are_numbers(after, experts=count_for(method))
        assert torch.equal(merged.delta, before)


def ends_of(knob):
    """The values of a setting between which all others lie."""
    if isinstance(knob, Choice):
        return knob.options
    return (knob.low, knob.high) if isinstance(knob, Knob) else (True, False)


@every_method
@every_shape
def test_the_ends_of_every_knob_and_both_sides_of_every_switch_work(method, shape):
    given = layer(method, *shape)
    for setting in method.settings:
        for value in ends_of(setting.knob):
            assert method(given, **{setting.name: value}).delta.isfinite().all(), (setting.name, value)


@every_method
def test_as_few_experts_as_it_says_are_enough(method):
    assert method(layer_of(deltas_of(6, 9, count=method.fewest))).delta.isfinite().all()


@those(LONE)
@every_shape
def test_one_expert_alone_is_what_is_merged(method, shape):
    given = layer_of(deltas_of(*shape, count=1))
    given = replace(given, decompose=len(shape) == 2 and 0 not in shape)
    full = {"eta": 100.0, "density": 1.0, "drop": 0.0, "floor": 0.0, "keep": 1.0}
    settings = {s.name: full[s.name] for s in method.settings if s.name in full}
    assert_close(method(given, **settings).delta, given.deltas[0], 1e-4)


@those(METHODS.keys() - NOT_BLIND_TO_ORDER_OF_NEURONS)
def test_neurons_in_another_order_are_merged_in_that_order(method):
    given = layer(method, 12, 10)
    rows, columns = torch.randperm(12, generator=torch.manual_seed(1)), torch.randperm(10)
    moved = replace(
        given, base=given.base[rows][:, columns], deltas=tuple(delta[rows][:, columns] for delta in given.deltas)
    )
    assert_close(method(moved).delta, method(given).delta[rows][:, columns], 1e-6)


@those(TURNS_WITH_OUTPUTS)
def test_turning_the_outputs_of_all_deltas_turns_those_of_the_merge(method):
    given, turn = layer(method, 12, 10), torch.linalg.qr(noise(12, 12, seed=8)).Q
    assert_close(
        method(replace(given, deltas=tuple(turn @ d for d in given.deltas))).delta, turn @ method(given).delta, 1e-6
    )


@those(TURNS_WITH_INPUTS)
def test_turning_the_inputs_of_all_deltas_turns_those_of_the_merge(method):
    given, turn = layer(method, 12, 10), torch.linalg.qr(noise(10, 10, seed=8)).Q
    assert_close(
        method(replace(given, deltas=tuple(d @ turn for d in given.deltas))).delta, method(given).delta @ turn, 1e-6
    )


@those(RANDOM)
def test_what_is_random_depends_on_the_seed_the_layer_and_the_expert_alone(method):
    given = layer(method, 6, 9)
    drawn = method(given, density=0.5).delta
    assert torch.equal(method(replace(given), density=0.5).delta, drawn)
    assert_close(method(turned(given), density=0.5).delta, drawn, 1e-12)
    for other in (replace(given, seed=1), replace(given, name="another"), replace(given, experts=("a", "b", "c"))):
        assert not torch.allclose(method(other, density=0.5).delta, drawn)


@pytest.mark.parametrize("method", [*METHODS.values(), *STEPS.values()], ids=[*METHODS, *STEPS])
def test_every_setting_has_help_and_a_default_that_it_allows(method):
    for setting in method.settings:
        assert setting.knob.help
        assert setting.checked(setting.default, method.title) == setting.default
        assert type(setting.default) is {Switch: bool, Choice: str, Knob: float}[type(setting.knob)]
        start = getattr(setting.knob, "start", None)
        assert start is None or setting.checked(start, method.title) == start


@every_method
def test_a_setting_that_it_does_not_have_is_refused(method):
    with pytest.raises(MergeError, match="has no setting 'colour'"):
        method.checked({"colour": 1})


@every_method
@pytest.mark.parametrize("wrong", ["0.5", None, ["0.5"], [], float("nan"), float("inf"), 10**400, -5], ids=str)
def test_a_setting_out_of_its_range_or_of_another_type_is_refused(method, wrong):
    for setting in method.settings:
        with pytest.raises(MergeError, match=re.escape(f"'{setting.name}' of {method.title} must be")):
            method.checked({setting.name: wrong})


@pytest.mark.parametrize("method", [*METHODS.values(), *STEPS.values()], ids=[*METHODS, *STEPS])
def test_its_docstring_has_a_summary_and_equations_and_its_paper_is_named(method):
    assert method.summary.endswith(".") and len(method.summary) < 120
    assert "=" in method.doc.split("\n", 1)[1]
    assert method.title and len(method.paper.split(".")) == 2


BY_ENTRIES = [
    (method, shape, decompose)
    for method in METHODS.values()
    for shape, decompose in [((7,), False), ((6, 9), False), ((6, 9), True), ((3, 4, 5), False)]
    if method.goes_by_entries(decompose)
]


@pytest.mark.parametrize(("method", "shape", "decompose"), BY_ENTRIES, ids=lambda it: getattr(it, "name", str(it)))
def test_an_entrywise_method_merges_a_tensor_part_by_part_to_the_same_bytes_and_facts(method, shape, decompose):
    whole = replace(layer(method, *shape), decompose=decompose)
    settings = {"density": 0.4} if method.name == "ties" else {}  # where something is trimmed at all
    parts = [slice(0, 1), slice(1, 3), slice(3, None)]
    layers = [replace(whole, base=whole.base[p], deltas=tuple(d[p] for d in whole.deltas)) for p in parts]
    seen = method.surveyed(Whole(whole.base.numel(), len(whole.deltas), lambda: layers), **settings)
    made, at_once = [method(replace(part, seen=seen), **settings) for part in layers], method(whole, **settings)
    assert torch.equal(torch.cat([merged.delta for merged in made]), at_once.delta)
    counts = {name: sum(merged.counts[name] for merged in made) for name in at_once.counts}
    assert shares(counts) == at_once.facts
    assert not any(merged.curves or merged.facts.keys() - merged.counts.keys() for merged in made)


@every_method
@pytest.mark.parametrize("shape", [(256, 512), (512, 256), (16, 2048)], ids=str)
def test_a_method_holds_no_more_memory_than_it_says_and_not_much_less(method, shape):
    count = count_for(method)
    base, *deltas = (noise(*shape, seed=i, dtype=torch.float32) for i in range(count + 1))
    given = replace(layer_of(deltas, WEIGHTS[:count]), base=base, decompose=True)
    most = most_held(lambda: method(given, **method.starting())) / (4 * base.numel() * (count + 1))
    assert most <= method.memory + 0.01  # a few single numbers
    assert shape == (16, 2048) or most >= method.memory / 4
