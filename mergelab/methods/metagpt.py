"""MetaGPT: each delta by its own share of the squared length (Zhou et al., EMNLP 2024, arXiv 2406.11385)."""

import torch

from mergelab.maths.sphere import lengths
from mergelab.method import Layer, Merged, merge_method


@merge_method("MetaGPT", paper="2406.11385", memory=2)
def metagpt(layer: Layer) -> Merged:
    """Add all deltas, each scaled by its share of the squared lengths: nothing to tune.

    λ_i = ‖w_i τ_i‖² / Σ_k ‖w_k τ_k‖²;  Δ = Σ λ_i w_i τ_i.

    The paper measures the lengths over all tensors of a model together; here each tensor has its own shares, so that
    one tensor at a time can be merged. An expert that leaves a tensor alone has no share in it.
    """
    deltas = layer.weighted(layer.dense)
    energy = lengths(deltas).square()
    shares = energy / energy.sum() if energy.sum() > 0 else torch.zeros_like(energy)
    delta = torch.einsum("e,e...->...", shares.to(deltas), deltas)
    return Merged(delta, {"share of energy": tuple(shares.tolist())})
