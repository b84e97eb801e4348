"""One weight matrix of the bundled experts, as the lessons look at it."""

from functools import cache

import torch
from torch import Tensor

from mergelab.maths.spectral import dense
from mergelab.method import Layer
from mergelab.planning.plan import Plan, plan
from mergelab.recipes.recipe import Expert, Recipe

MODULE = "model.layers.0.self_attn.q_proj.weight"  # the lessons' example; it has strong directions
CORNER = 24  # rows and columns of a matrix that a picture can show


@cache
def planned(*skills: str) -> Plan:
    """The plain average of some experts of the numbers family, opened and checked."""
    return plan(Recipe("numbers/base", tuple(Expert(f"numbers/{skill}") for skill in skills), "linear"))


@cache
def layer_of(module: str, *skills: str) -> Layer:
    """One tensor of the base, with what some experts changed in it."""
    return planned(*skills).layer(module, "cpu")


@cache
def change(skill: str, module: str = MODULE) -> Tensor:
    """What one expert changed in one matrix, (out, in) float64."""
    return dense(layer_of(module, skill).deltas[0]).double()


@cache
def singular_values(skill: str, module: str = MODULE) -> Tensor:
    """The singular values of such a change, descending."""
    return torch.linalg.svdvals(change(skill, module))


def corner(matrix: Tensor) -> list[list[float]]:
    """The upper left corner of a matrix, for a picture."""
    return matrix[:CORNER, :CORNER].tolist()
