"""Bringing an expert into a reference's coordinates: planted transforms are found, and what does not fit is refused."""

from collections.abc import Mapping

import pytest
import torch
from kin import FAMILIES, kin, rebuilt, vgg
from torch import nn

from mergelab import MergeError
from mergelab.align import alignment, alignments, compared
from mergelab.align.pair import shapes_of
from mergelab.model import probe
from mergelab.symmetry import symmetry_of


def doubled(name):
    config, tensors = kin(name)
    return config, {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}


def planted(tensors, config, seed=3, rotations=True):
    """The model after a random element of its symmetry."""
    symmetry = symmetry_of(shapes_of(tensors), config)
    elements = symmetry.random(seed, rotations)
    return {name: symmetry.moved(name, tensor, elements) for name, tensor in tensors.items()}


def farthest(alignment, expert, reference):
    floats = [name for name in reference if reference[name].is_floating_point()]
    return max(float((alignment.applied(name, expert[name]) - reference[name]).abs().max()) for name in floats)


@pytest.mark.parametrize("rotations", [True, False], ids=["rotations", "permutations"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_transform_is_recovered_from_the_weights(name, rotations):
    config, reference = doubled(name)
    expert = planted(reference, config, rotations=rotations)
    found = alignment(reference, expert, config, rotations=rotations)
    assert farthest(found, expert, reference) < 1e-6
    assert found.distance[0] > 0.5 and found.distance[1] < 1e-6
    assert found.objective[-1] == pytest.approx(1) and found.correlation == pytest.approx(1)
    assert list(found.correlations) == [group.name for group in found.symmetry.groups]


def batches(config, count=4):
    """Random inputs, text with padding on the right."""
    made = [probe(config, seed, samples=2) for seed in range(count)]
    for batch in made:
        if "input_ids" in batch:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            batch["attention_mask"][0, -3:] = 0
    return made


@pytest.mark.parametrize(
    "name", ["llama", "qwen3", "gpt2", "gpt_neox", "bert", "vit", "clip", "t5", "resnet", "bottleneck"]
)
def test_a_planted_transform_is_recovered_from_activations(name):
    config, reference = doubled(name)
    expert = planted(reference, config)
    found = alignment(reference, expert, config, "activations", batches(config))
    assert farthest(found, expert, reference) < 1e-5  # the forward pass is in float32
    assert found.distance[1] < 1e-6 and found.correlation > 0.95  # a unit that is always off correlates with nothing


@pytest.mark.parametrize("name", ["llama", "t5", "resnet"])
def test_under_noise_the_distance_that_is_left_is_the_noise(name):
    config, reference = doubled(name)
    expert = planted(reference, config)
    draw = torch.Generator().manual_seed(0)
    noisy = {n: t + 0.05 * torch.randn(t.shape, generator=draw, dtype=t.dtype) if t.is_floating_point() else t
             for n, t in expert.items()}  # fmt: skip
    noise = sum(float((noisy[n] - expert[n]).square().sum()) for n in alignment_names(expert, config)) ** 0.5
    size = sum(float(reference[n].square().sum()) for n in alignment_names(expert, config)) ** 0.5
    assert alignment(reference, noisy, config).distance[1] == pytest.approx(noise / size, rel=0.1)


def alignment_names(tensors, config):
    slots = symmetry_of(shapes_of(tensors), config).slots
    measured = {name for name in slots if any(slot.statistic for _, slot in slots[name])}
    return [name for name in shapes_of(tensors) if name not in measured]


@pytest.mark.parametrize("how", ["weights", "activations"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "resnet"])
def test_a_model_aligned_to_itself_stays_as_it_is(name, how):
    config, tensors = doubled(name)
    found = alignment(tensors, tensors, config, how, batches(config))
    limit = 0 if how == "weights" else 1e-5
    assert farthest(found, tensors, tensors) <= limit and found.objective[0] == pytest.approx(1)


def test_permutations_keep_every_bit_of_half_precision():
    config, tensors = kin("llama")
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    expert = planted(half, config, rotations=False)
    found = alignment(half, expert, config, rotations=False)
    assert all(torch.equal(found.applied(name, expert[name]), half[name]) for name in half)


def test_the_function_is_kept_and_the_objective_rises_for_models_that_share_nothing():
    config, reference = doubled("llama")
    draw = torch.Generator().manual_seed(0)
    expert = {n: torch.randn(t.shape, generator=draw, dtype=t.dtype) * t.std() for n, t in reference.items()}
    found = alignment(reference, expert, config)
    back = alignment(expert, dict(found.aligned(expert)), config)
    assert back.distance[1] < 1e-6  # what was done can be undone, so it was an element of the symmetry
    assert found.distance[1] < found.distance[0]
    assert found.objective[0] < found.objective[1] <= max(found.objective)


class Counted(Mapping):
    """Tensors that count how often each is read."""

    def __init__(self, tensors):
        self.tensors, self.read = tensors, []

    def __getitem__(self, name):
        self.read.append(name)
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def test_an_aligned_expert_is_read_one_tensor_at_a_time():
    config, tensors = kin("llama")
    expert = Counted(planted(tensors, config))
    view = alignment(tensors, expert.tensors, config).aligned(expert)
    assert len(view) == len(tensors) and list(view) == list(tensors) and not expert.read
    assert view["model.norm.weight"].dtype == torch.float32
    assert expert.read == ["model.norm.weight"]


def test_what_only_the_expert_has_is_moved_with_the_rest():
    config, full = doubled("llama")
    expert = planted(full, config)
    reference = {name: tensor for name, tensor in full.items() if name != "lm_head.weight"}  # tied, so not on disk
    assert farthest(alignment(reference, expert, config), expert, full) < 1e-6
    config, pooled = kin("bert with a pooler")
    plain = {name: tensor for name, tensor in pooled.items() if "pooler" not in name}
    with pytest.raises(MergeError, match="The expert has a 'pooler' that the reference has not"):
        alignment(plain, pooled, config)


def test_padding_and_first_positions_have_no_say():
    config, reference = doubled("llama")
    draw = torch.Generator().manual_seed(0)
    expert = {n: torch.randn(t.shape, generator=draw, dtype=t.dtype) * t.std() for n, t in reference.items()}
    ids = torch.randint(3, 32, (6, 9), generator=draw)
    plain = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    wide = torch.nn.functional.pad(ids, (0, 4), value=7)
    masked = [{"input_ids": wide, "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, 4))}]
    one, other = (alignment(reference, expert, config, "activations", data) for data in (plain, masked))
    assert one.correlation == pytest.approx(other.correlation, abs=1e-6)


def test_of_several_experts_the_one_nearest_the_mean_is_the_reference():
    config, middle = doubled("resnet")
    scaled = {f: {n: f * t if t.is_floating_point() else t for n, t in middle.items()} for f in (0.9, 1.1)}
    chosen, found = alignments({"left": scaled[0.9], "middle": middle, "right": scaled[1.1]}, config)
    assert chosen == "middle" and found["middle"].distance == (0, 0)
    moved = planted(middle, config)
    chosen, found = alignments({"left": scaled[0.9], "right": moved}, config, reference="left")
    assert chosen == "left" and farthest(found["right"], moved, middle) < 1e-6
    with pytest.raises(MergeError, match="no expert 'centre'"):
        alignments({"left": middle}, config, reference="centre")


def shapes_to_tell_apart(seed, count=256):
    """Images with a bar that is upright, level, rising or falling, at a random place and in noise; and which it is."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=draw)
    places = torch.randint(1, 7, (count,), generator=draw)
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=draw)
    for image, label, place in zip(images, labels.tolist(), places.tolist()):
        steps = torch.arange(8)
        rows = [steps, torch.full((8,), place), steps, steps][label]
        columns = [torch.full((8,), place), steps, (steps + place) % 8, (place - steps) % 8][label]
        image[0, rows, columns] += 1.5
    return images, labels


@pytest.fixture(scope="module")
def strangers():
    """Two convolutional nets trained on the same task from different initialisations."""
    images, labels = shapes_to_tell_apart(0)

    def trained(seed):
        model = vgg(seed)
        optimiser = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        return {name: tensor.detach() for name, tensor in model.eval().state_dict().items()}

    return trained(1), trained(2)


def test_networks_trained_apart_come_nearer_and_their_average_gets_better(strangers):
    images, labels = shapes_to_tell_apart(1)
    data = [{"pixel_values": images}]
    for net in strangers:
        assert (rebuilt(net)(images).argmax(-1) == labels).float().mean() > 0.9
    ways = compared(*strangers, {}, data, build=rebuilt)
    by_how = {one.how: one for one in ways}
    assert [one.loss for one in ways] == sorted(one.loss for one in ways) and len(ways) == 3
    for how in ("weights", "activations"):
        assert by_how[how].alignment.distance[1] < by_how["none"].alignment.distance[1]
    assert by_how["activations"].loss < by_how["none"].loss
    labelled = compared(*strangers, {}, [{**data[0], "labels": labels}], build=rebuilt)
    assert {one.how: one.loss for one in labelled}["activations"] < {one.how: one.loss for one in labelled}["none"]


def test_units_that_never_fire_are_told_apart_by_their_weights():
    reference = {name: tensor.clone() for name, tensor in vgg(4).state_dict().items()}
    for bias, silent in (("1.bias", 3), ("5.bias", 4), ("8.bias", 5)):
        reference[bias][:silent] = -50
    expert = planted(reference, {})
    data = [{"pixel_values": torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))}]
    found = alignment(reference, expert, {}, "activations", data, build=rebuilt)
    assert farthest(found, expert, reference) == 0
    assert sum(value == 0 for values in found.correlations.values() for value in values) >= 3 + 4 + 5


def test_the_facts_of_an_alignment_are_plain_and_enough_for_the_pictures(strangers):
    facts = alignment(*strangers, {}).facts()
    assert facts["family"] == "sequential" and facts["how"] == "weights"
    assert {name: len(values) for name, values in facts["correlations"].items()} == {"0": 6, "4": 8, "8": 12}
    assert all(-1 <= value <= 1 for values in facts["correlations"].values() for value in values)
    assert len(facts["objective"]) > 1 and facts["distance after"] < facts["distance before"]


def test_what_does_not_fit_is_refused_by_name():
    config, tensors = kin("llama")
    table, norm = "model.embed_tokens.weight", "model.norm.weight"
    with pytest.raises(MergeError, match=f"'{table}' is .40, 16. in the expert.*vocabularies differ"):
        alignment(tensors, {**tensors, table: torch.zeros(40, 16)}, config)
    with pytest.raises(MergeError, match=f"'{norm}' is .17. in the expert.*only models of one shape"):
        alignment(tensors, {**tensors, norm: torch.zeros(17)}, config)
    with pytest.raises(MergeError, match=f"no tensor '{norm}'"):
        alignment(tensors, {name: t for name, t in tensors.items() if name != norm}, config)
    with pytest.raises(MergeError, match="symmetries of 'mamba' are not known"):
        alignment(tensors, tensors, {"model_type": "mamba"})
    with pytest.raises(MergeError, match="no alignment 'weight'.*'weights'"):
        alignment(tensors, tensors, config, "weight")
    for way in (alignment, compared):
        with pytest.raises(MergeError, match="needs? calibration data"):
            way(*(tensors, tensors, config), **({"how": "activations"} if way is alignment else {"data": []}))
    for broken in (torch.nan, torch.inf):
        with pytest.raises(MergeError, match=f"'{norm}' of the expert holds NaN or an infinity"):
            alignment(tensors, {**tensors, norm: torch.full((16,), broken)}, config)
    huge = {f"model.layers.0.mlp.{part}_proj.weight": torch.full((24, 16), 4e18) for part in ("gate", "up")}
    with pytest.raises(MergeError, match="NaN or infinite on this data"):
        alignment(tensors, {**tensors, **huge}, config, "activations", batches(config))
    with pytest.raises(MergeError, match="no architecture that transformers has"):
        alignment(tensors, tensors, {**config, "architectures": ["LamaForCausalLM"]}, "activations", batches(config))
