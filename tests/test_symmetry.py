"""What may be done to a model's neurons without changing what it computes, and what may not."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from kin import FAMILIES, kin, rebuilt, vgg

from mergelab import MergeError
from mergelab.align import selftest
from mergelab.align.pair import shapes_of
from mergelab.maths.heads import Freedom
from mergelab.model import built, outputs, probe
from mergelab.symmetry import Heads, Slot, Symmetry, Units, symmetry_of


def change(name, symmetry, rotations=True, seed=1):
    """How much a random element changes a family's outputs, relative to them."""
    config, tensors = kin(name)
    elements = symmetry.random(seed, rotations)
    moved = {tensor: symmetry.moved(tensor, value, elements) for tensor, value in tensors.items()}
    before, after = (outputs(built(config, model), probe(config)) for model in (tensors, moved))
    return float((after - before).norm() / before.norm())


def own(name):
    config, tensors = kin(name)
    return symmetry_of(shapes_of(tensors), config)


@pytest.mark.parametrize("rotations", [True, False], ids=["rotations", "permutations"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_random_element_of_every_group_leaves_the_outputs_as_they_are(name, rotations):
    symmetry = own(name)
    assert change(name, symmetry, rotations) < 1e-5
    config, tensors = kin(name)
    elements = symmetry.random(1, rotations)
    for group in symmetry.groups:
        if isinstance(group, Units) and group.name != "pooler":
            slot = group.slots[0]
            assert not torch.equal(symmetry.moved(slot.name, tensors[slot.name], elements), tensors[slot.name])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_groups_are_the_same_by_the_names_in_memory(name):
    config, tensors = kin(name)
    memory = built(config, tensors).state_dict()
    there = symmetry_of(shapes_of(memory), config)
    assert [type(group) for group in there.groups] == [type(group) for group in own(name).groups]
    assert all(slot.name in memory for group in there.groups for slot in group.slots)


def test_a_residual_stream_that_is_the_output_stays_in_order():
    assert "residual" in [group.name for group in own("bert").groups]
    assert not {"residual", "pooler"} & {group.name for group in own("bare bert").groups}
    assert "pooler" in [group.name for group in own("bert with a pooler").groups]


def freed(symmetry, freedom):
    """The symmetry with more freedom in its heads than there is."""
    groups = [replace(g, freedom=freedom) if isinstance(g, Heads) else g for g in symmetry.groups]
    return Symmetry(symmetry.family, tuple(groups))


def test_rotary_dimensions_may_not_be_permuted():
    assert change("llama", freed(own("llama"), Freedom()), rotations=False) > 0.1
    assert change("gpt_neox", freed(own("gpt_neox"), Freedom()), rotations=False) > 0.1


def test_normed_queries_may_not_be_turned():
    assert change("qwen3", freed(own("qwen3"), Freedom(rotary=8))) > 0.1


def test_the_heads_of_a_t5_stack_may_not_be_ordered_layer_by_layer():
    symmetry = own("t5")
    tied = next(group for group in symmetry.groups if group.name == "attention encoder")
    first = [replace(slot, layer=0) for slot in tied.slots if slot.layer == 0]
    second = [replace(slot, layer=0) for slot in tied.slots if slot.layer == 1]
    apart = [replace(tied, name=f"layer {i}", slots=tuple(part), layers=1) for i, part in enumerate((first, second))]
    others = [group for group in symmetry.groups if group is not tied]
    assert change("t5", Symmetry("t5", (*others, *apart))) > 0.1


def test_channels_of_bert_may_not_change_heads():
    parts = [("query", 0), ("key", 0), ("value", 0)]
    at = "bert.encoder.layer.0.attention"
    slots = [Slot(f"{at}.self.{part}.{kind}", axis, 16) for part, axis in parts for kind in ("weight", "bias")]
    channels = Units("channels", (*slots, Slot(f"{at}.output.dense.weight", 1, 16)))
    assert change("bert", Symmetry("bert", (channels,))) > 0.1


def test_the_channels_of_a_plain_chain_may_stand_in_any_order():
    model = vgg()
    for module in model:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    tensors = model.state_dict()
    assert [group.size for group in symmetry_of(shapes_of(tensors), {}).groups] == [6, 8, 12]
    batch = {"pixel_values": torch.randn(3, 1, 8, 8)}
    assert selftest(tensors, {}, build=rebuilt, batch=batch) < 1e-6
    split = {name: "features" if int(name.partition(".")[0]) < 8 else "classifier" for name in tensors}
    named = {f"{root}.{name}": tensors[name] for name, root in split.items()}
    assert [group.size for group in symmetry_of(shapes_of(named), {"model_type": "vgg"}).groups] == [6, 8, 12]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_self_test_passes_every_family(name):
    config, tensors = kin(name)
    assert selftest(tensors, config) < 1e-5


def test_the_self_test_is_not_fooled_by_half_precision():
    config, tensors = kin("llama")
    assert selftest({name: tensor.bfloat16() for name, tensor in tensors.items()}, config) < 1e-5


def test_the_self_test_refuses_a_model_that_is_not_what_it_says():
    config, tensors = kin("llama")
    wrong = {**config, "rope_parameters": {"partial_rotary_factor": 0.5}}
    with pytest.raises(MergeError, match="not what its symmetries were written for.*Nothing was aligned"):
        selftest(tensors, wrong, build=partial(built, config), batch=probe(config))
    broken = {**tensors, "model.norm.weight": torch.full((16,), torch.nan)}
    with pytest.raises(MergeError, match="'model.norm.weight' of the model holds NaN"):
        selftest(broken, config)


@pytest.mark.parametrize(
    ("config", "extra", "said"),
    [
        ({"model_type": "mamba"}, {}, "symmetries of 'mamba' are not known"),
        ({"model_type": "lama"}, {}, "Did you mean 'llama'"),
        ({}, {}, "symmetries of 'None' are not known"),
        (None, {"model.layers.0.mlp.experts.0.up.weight": (24, 16)}, "experts.0.up.weight' is no tensor"),
        (None, {"model.norm.weight": (17,)}, "disagree about its size"),
        ({"model_type": "llama"}, {}, "how many attention heads"),
        ({"model_type": "llama", "num_attention_heads": 3}, {}, "3 heads .* do not divide"),
        ({"model_type": "resnet"}, {}, "'lm_head.weight' has no place"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config, extra, said):
    own_config, tensors = kin("llama")
    with pytest.raises(MergeError, match=said):
        symmetry_of(shapes_of(tensors) | extra, own_config if config is None else config)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"0.weight": (4, 3), "2.weight": (5, 6)}, "reads 6 channels, but '0.weight' before it writes 4"),
        ({"0.weight": (4, 3), "1.weight": (7,), "2.weight": (5, 4)}, "'1.weight' has no place"),
        ({"0.weight": (4, 3), "1.weight": (8, 1, 3, 3)}, "reads 1 channels"),
        ({"0.weight": (4, 3), "1.weight": (8, 16)}, "reads 16 channels"),
    ],
)
def test_a_chain_that_does_not_fit_together_is_refused(shapes, said):
    with pytest.raises(MergeError, match=said):
        symmetry_of(shapes, {})
