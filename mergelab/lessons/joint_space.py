"""Chapter 5: the joint space of DRM."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mergelab.lessons.answers import SKILLS, answers, merge_of
from mergelab.lessons.experts import MODULE, layer_of
from mergelab.lessons.lesson import Chapter, Facts, Lesson
from mergelab.lessons.survey import COUNTS
from mergelab.lessons.truncation import ETA
from mergelab.lessons.verdict import against
from mergelab.maths.signs import conflict_share, trimmed
from mergelab.maths.spectral import joint_factors, projected
from mergelab.method import METHODS, Layer, Merged
from mergelab.plots import shapes as plots
from mergelab.plots.spectra import joint_space
from mergelab.report import LayerReport, Report
from mergelab.scores.scoring import mean_score

DROP, HARD = 0.5, 0.8  # the share that the lessons prune; the authors' default
FOUR = SKILLS[:4]


@cache
def merged_by_drm(count: int, drop: float) -> Merged:
    """DRM-H on one matrix of the first experts."""
    return METHODS["drm_h"](layer_of(MODULE, *SKILLS[:count]), drop=drop)


def _one_basis() -> Facts:
    merged = merged_by_drm(len(FOUR), HARD)
    curves = {
        name: tuple(map(tuple, v.tolist())) if v.dim() > 1 else tuple(v.tolist()) for name, v in merged.curves.items()
    }
    shape = tuple(layer_of(MODULE, *FOUR).base.shape)
    report = Report({}, FOUR, (LayerReport(MODULE, shape, True, merged.facts, curves),))
    first = merged.curves["ownership"][:, 0]
    owner = {"owner": FOUR[int(first.argmax())], "share": float(first.max())}
    return {"report": report, "rank": int(merged.facts["joint rank"]), "equal": 1 / len(FOUR), **owner}


def _owners() -> Facts:
    counts = (2, 4, 8)
    tops = {n: merged_by_drm(n, HARD).curves["ownership"].amax(0).sort(descending=True).values for n in counts}
    means = {f"mean_{n}": float(top.mean()) for n, top in tops.items()}
    equal = {f"equal_{n}": 1 / n for n in counts}
    return {"curves": {f"{n} experts": top.tolist() for n, top in tops.items()}, **means, **equal}


def coordinates(layer: Layer) -> Tensor:
    """What each expert writes in the joint basis, Uᵀτ_i, the strongest direction first. (expert, direction, in)"""
    joint = joint_factors(layer.deltas)
    return torch.stack([projected(joint.vectors, delta) for delta in layer.deltas]).double()


def kept_by_direction(entries: Tensor, drop: float) -> Tensor:
    """Of each direction's entries, the share among the largest (1 − drop) of all. entries: (expert, direction, in)"""
    kept = trimmed(entries, round((1 - drop) * entries.numel())) != 0
    return kept.double().mean((0, 2))


def _spread() -> Facts:
    rows = coordinates(layer_of(MODULE, *FOUR))
    units = rows / rows.norm(dim=2, keepdim=True)
    found = {"renormalised": kept_by_direction(units, HARD), "as they are": kept_by_direction(rows, HARD)}
    quarter = rows.shape[1] // 4
    shares = {name: float(kept[:quarter].sum() / kept.sum()) for name, kept in found.items()}
    ends = {"before": shares["as they are"], "after": shares["renormalised"]}
    return {"curves": {name: kept.tolist() for name, kept in found.items()}, "drop": HARD, **ends}


def _votes() -> Facts:
    layer = layer_of(MODULE, *FOUR)
    trim = torch.stack([trimmed(delta, round((1 - HARD) * delta.numel())) for delta in layer.entries])
    joint = {drop: merged_by_drm(len(FOUR), drop).facts["sign conflicts"] for drop in (0.0, DROP, HARD)}
    shares = {"weights": conflict_share(layer.dense), "joint": joint[0.0], "half": joint[DROP], "hard": joint[HARD]}
    return shares | {"trimmed": conflict_share(trim), "drop": HARD, "some": DROP}


def _worth() -> Facts:
    drm, star = answers("drm by number"), answers("star by number")
    lines = {f"DRM-H, drop {DROP}": drm.points, f"STAR, η = {ETA}": star.points, "the average": drm.baselines}
    facts: dict[str, Any] = {"curves": {n: [mean_score(p.scores).value for p in points] for n, points in lines.items()}}
    for count in (2, 4, 8):
        point, plain = drm.points[COUNTS.index(count)], drm.baselines[COUNTS.index(count)]
        facts |= {f"drm_{count}": mean_score(point.scores).value, f"average_{count}": mean_score(plain.scores).value}
        facts |= {f"{key}_{count}": value for key, value in against(point, plain).items()}
    return facts


CHAPTER = Chapter(
    "joint-space",
    "Joint space",
    (
        Lesson(
            "One basis for all experts",
            r"""Truncation looks at each expert alone. DRM puts their changes side by side and decomposes them together:
            $[\tau_1 \dots \tau_T] = U S\,[V_1^\top \dots V_T^\top]$. Now all speak of the same directions $u_k$,
            and row $k$ of $V_i^\top$ is what expert $i$ does with direction $k$.""",
            _one_basis,
            r"""Together the four have **{rank}** directions in this matrix. The strongest belongs most to {owner}:
            **{share:.0%}**, where {equal:.0%} would be an equal share. On the right, a stripe of one colour is a
            direction that one expert has to itself.""",
            lambda facts: joint_space(facts["report"], MODULE),
            merge_of(4, "drm_h", drop=DROP),
        ),
        Lesson(
            "The more experts, the less is anybody's own",
            r"""The length of that row, squared, is the expert's share of the direction. Sort the directions by the
            share of whoever has most of them. High means a direction that nobody contests; the floor is an equal
            split.""",
            _owners,
            r"""The largest share is **{mean_2:.0%}** on average with two experts (an equal split is {equal_2:.0%}),
            **{mean_4:.0%}** with four ({equal_4:.0%}), **{mean_8:.0%}** with eight ({equal_8:.1%}): at this scale
            most directions are shared, and few are owned.""",
            lambda facts: plots.curves(
                range(1, 1 + max(map(len, facts["curves"].values()))),
                facts["curves"],
                ("directions, the most owned first", "largest share"),
            ),
            merge_of(8, "drm_h", drop=DROP),
        ),
        Lesson(
            "Renormalise, then prune",
            r"""Pruning keeps the largest entries. In the joint basis as it is, those all sit in the strong directions,
            and weak ones vanish. DRM first brings every row to length one, moves its length into the strength
            $s_{ik} = \sigma_k \lVert v_{ik} \rVert$, and then prunes: every direction keeps its own best entries.""",
            _spread,
            r"""Prune {drop:.0%}: of what is left, **{before:.0%}** lies in the strongest quarter of the directions
            without renormalisation, and **{after:.0%}** with it.""",
            lambda facts: plots.curves(
                range(1, 1 + len(facts["curves"]["renormalised"])),
                facts["curves"],
                ("direction, strongest first", "entries that are kept"),
            ),
            merge_of(4, "drm_h", drop=HARD),
            fact="share pruned",
        ),
        Lesson(
            "Elect a sign",
            r"""Where experts still disagree, the sum elects a sign, and the mean is taken over those that have it. So
            what is left after pruning decides how much is outvoted. To be fair, the last bar trims the plain
            weights just as hard, as TIES does.""",
            _votes,
            r"""Of the entries that anybody moves, **{weights:.0%}** are pulled both ways in the weights and
            **{joint:.0%}** in the joint basis: the basis alone settles nothing. Pruning {some:.0%} leaves
            **{half:.0%}**, pruning {drop:.0%} leaves **{hard:.0%}**; trimming the plain weights as hard leaves
            **{trimmed:.0%}**.""",
            lambda facts: plots.bars(
                ("weights", "joint basis", f"pruned {DROP:.0%}", f"pruned {HARD:.0%}", f"weights, trimmed {HARD:.0%}"),
                {"pulled both ways": [facts[key] for key in ("weights", "joint", "half", "hard", "trimmed")]},
                "entries pulled both ways",
            ),
            merge_of(4, "drm_h", drop=HARD),
            fact="sign conflicts",
        ),
        Lesson(
            "What it is worth",
            r"""The same merges, by number of experts, each on its own experts' tasks. Look at where the curves part,
            and where they do not: a gain that a paper reports need not show on models as small as these.""",
            _worth,
            r"""Two experts: DRM-H **{drm_2:.1%}**, the average **{average_2:.1%}**; {wins_2} prompts won, {losses_2}
            lost, {luck_2} ({chance_2}). Four: **{drm_4:.1%}** against **{average_4:.1%}**, {luck_4} ({chance_4}).
            Eight: **{drm_8:.1%}** against **{average_8:.1%}**, {luck_8} ({chance_8}).""",
            lambda facts: plots.curves(COUNTS, facts["curves"], ("number of experts", "mean exact match")),
            merge_of(4, "drm_h", drop=DROP),
            tab="merge",
        ),
    ),
)
