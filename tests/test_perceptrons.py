"""Two perceptrons of different initialisations and different tasks: aligned, averaged, repaired, in a few seconds."""

import pytest
import torch
from torch import nn

from mergelab.align import alignment
from mergelab.repair import applied, fit, joined, mean_goals, sites, statistics
from mergelab.tasks import picture_tasks

TASKS = ("upright", "invert")


class Perceptron(nn.Sequential):
    """Four linear layers with layer norms between them, on scans of 8×8 pixels."""

    def __init__(self, width: int = 256):
        norms = [layer for _ in range(3) for layer in (nn.LazyLinear(width), nn.LayerNorm(width), nn.ReLU())]
        super().__init__(*norms, nn.Linear(width, 10))
        self(torch.zeros(1, 1, 32, 32))

    def forward(self, pixel_values):
        return super().forward(pixel_values[:, 0, ::4, ::4].flatten(1))


def rebuilt(tensors):
    model = Perceptron()
    model.load_state_dict(dict(tensors))
    return model.eval()


def trained(seed, pictures):
    torch.manual_seed(seed)
    model = Perceptron()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(pictures.images), pictures.labels).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def right(model, task):
    """The share of a task's test pictures that a model reads right."""
    pictures = picture_tasks()[task].test
    with torch.no_grad():
        return float((model(pictures.images).argmax(-1) == pictures.labels).float().mean())


@pytest.fixture(scope="module")
def networks():
    """Two experts, and the second one in the first one's coordinates."""
    pictures = [picture_tasks()[task].calibration for task in TASKS]
    first, second = (trained(seed, some) for seed, some in enumerate(pictures, start=1))
    data = [{"pixel_values": torch.cat([some.images[:128] for some in pictures])}]
    return first, second, alignment(first, second, {}, "activations", data, build=rebuilt).aligned(second)


def story(first, second):
    """Per task, what the average of two networks reads right: as it is, with REPAIR, with TACT."""
    merged = rebuilt({name: (first[name] + second[name]) / 2 for name in first})
    experts, where = (rebuilt(first), rebuilt(second)), sites(merged)
    batches = [[{"pixel_values": picture_tasks()[task].calibration.images[:64]}] for task in TASKS]
    union = [joined([batch for some in batches for batch in some])]
    mean = fit(merged, mean_goals([statistics(expert, union, where) for expert in experts]), union, where)
    rows = []
    for task, expert, some in zip(TASKS, experts, batches):
        scores = [right(merged, task)]
        for patch in (mean, fit(merged, statistics(expert, some, where), some, where)):
            with applied(merged, patch):
                scores.append(right(merged, task))
        rows.append(scores)
    return rows


def test_tact_is_at_least_repair_and_repair_at_least_the_merge(networks):
    first, second, aligned = networks
    assert min(right(rebuilt(net), task) for net, task in zip((first, second), TASKS)) > 0.9
    for merged, repair, tact in story(first, aligned):
        assert tact >= repair >= merged and tact > merged + 0.2


def test_alignment_keeps_the_function_and_makes_every_way_of_merging_better(networks):
    first, second, aligned = networks
    assert right(rebuilt(aligned), "invert") == pytest.approx(right(rebuilt(second), "invert"), abs=0.005)
    for plain, better in zip(story(first, second), story(first, aligned)):
        assert all(b > a + 0.05 for a, b in zip(plain, better))
