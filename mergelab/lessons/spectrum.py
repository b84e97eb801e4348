"""Chapter 2: the spectrum of a task vector."""

import torch
from torch import Tensor

from mergelab.lessons.answers import SKILLS, merge_of
from mergelab.lessons.experts import change, corner, singular_values
from mergelab.lessons.lesson import Chapter, Facts, Lesson
from mergelab.lessons.survey import survey
from mergelab.maths.spectral import rank_keeping
from mergelab.plots import shapes as plots
from mergelab.plots.parts import short_name
from mergelab.recipes.recipe import Expert, Recipe

HALF, FEW, MORE = 0.5, 1, 8
ADAPTERS = Recipe("numbers/base", tuple(Expert(f"numbers/{skill}-lora") for skill in SKILLS[:2]), "star", {"eta": 40.0})


def energy(values: Tensor, rank: int) -> float:
    """The share of the squared singular values that the first ones hold."""
    return float(values[:rank].square().sum() / values.square().sum())


def _sum_of_directions() -> Facts:
    u, s, vt = torch.linalg.svd(change("french"), full_matrices=False)
    picture = {f"the first {rank}": (u[:, :rank] * s[:rank]) @ vt[:rank] for rank in (FEW, MORE)}
    picture |= {"all": change("french")}
    shares = {"few": FEW, "more": MORE, "energy_few": energy(s, FEW), "energy_more": energy(s, MORE)}
    return {"picture": {name: corner(matrix) for name, matrix in picture.items()}, "all": len(s), **shares}


def _steep() -> Facts:
    values, delta = singular_values("french"), change("french")
    order = torch.randperm(delta.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = torch.linalg.svdvals(delta.flatten()[order].view_as(delta))
    ranks = {"half": rank_keeping(values, HALF), "half_shuffled": rank_keeping(shuffled, HALF)}
    curves = {"what training changed": values.numpy(), "the same numbers, shuffled": shuffled.numpy()}
    return {"curves": curves, **ranks, "all": len(values), "times": float(values[0] / shuffled[0])}


def _uneven() -> Facts:
    names = [short_name(name) for name in survey()["modules"]]
    shares = [rank / len(singular_values("french")) for rank in survey()["half"]["french"]]  # all have as many
    low, high = (shares.index(pick(shares)) for pick in (min, max))
    ends = {"least": shares[low], "least_name": names[low], "most": shares[high], "most_name": names[high]}
    return {"names": names, "shares": shares, **ends}


def _adapter() -> Facts:
    full, thin = singular_values("french"), singular_values("french-lora")
    rank = int((thin > 1e-6 * thin[0]).sum())
    curves = {"trained in full": full.numpy(), "trained as an adapter": thin[:rank].numpy()}
    return {"curves": curves, "rank": rank, "full": rank_keeping(full, 0.99), "share": 0.99, "all": len(full)}


CHAPTER = Chapter(
    "spectrum",
    "Spectrum",
    (
        Lesson(
            "A matrix is a sum of directions",
            r"""The singular value decomposition writes any matrix as a sum of simple ones: $\tau = \sum_k \sigma_k\,
            u_k v_k^\top$. Each term reads one pattern $v_k$ at the input and writes one pattern $u_k$ at the
            output, with strength $\sigma_k$, the strongest first.""",
            _sum_of_directions,
            r"""The first of **{all}** directions holds **{energy_few:.0%}** of the squared size of this change, the
            first **{more}** hold **{energy_more:.0%}**: the middle picture has most of the pattern.""",
            lambda facts: plots.matrices(facts["picture"]),
            merge_of(4, "star", eta=40.0),
        ),
        Lesson(
            "A few directions are strong",
            r"""Draw the strengths in order: that is the **spectrum**. Its sum $\sum_k \sigma_k$ is the nuclear norm,
            and on the right it builds up. Is the steep start an accident? The second curve is of the very same
            numbers in a random order.""",
            _steep,
            r"""**{half}** of {all} directions hold half of the nuclear norm; after shuffling it takes
            **{half_shuffled}**. The strongest direction is **{times:.1f}** times as strong as the strongest one of
            the shuffled matrix: that is what training put there.""",
            lambda facts: plots.spectra_of(facts["curves"]),
            merge_of(4, "star", eta=40.0),
        ),
        Lesson(
            "Some matrices need more than others",
            r"""How many directions hold half of the nuclear norm? Ask it of every matrix. That is why one rank for all
            matrices would be wrong, and why STAR asks for a share of the norm instead and lets the rank follow.""",
            _uneven,
            r"""From **{least:.0%}** of all directions (matrix {least_name}) to **{most:.0%}** ({most_name}).""",
            lambda facts: plots.bars(
                facts["names"], {"directions": facts["shares"]}, "directions for half the norm", False
            ),
            merge_of(4, "star", eta=50.0),
            fact="rank kept",
        ),
        Lesson(
            "An adapter has few directions by design",
            r"""LoRA trains $\tau = B A$ with thin factors, so that all but a few singular values are exactly zero. Its
            spectrum ends where the factors end. Merging sees it like any other change; only the arithmetic is
            cheaper.""",
            _adapter,
            r"""The French adapter has exactly **{rank}** directions; the same task trained in full needs **{full}** of
            {all} for **{share:.0%}** of its nuclear norm.""",
            lambda facts: plots.spectra_of(facts["curves"]),
            ADAPTERS,
        ),
    ),
)
