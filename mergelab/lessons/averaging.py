"""Chapter 4: why averaging loses."""

import json
from typing import Any

import torch

from mergelab.assets import ASSETS
from mergelab.lessons.answers import SKILLS, answers, merge_of
from mergelab.lessons.lesson import Chapter, Facts, Lesson
from mergelab.lessons.survey import COUNTS, survey
from mergelab.lessons.task_vector import cosines
from mergelab.lessons.truncation import ETA
from mergelab.lessons.verdict import against, best_of
from mergelab.maths.moments import variance_kept
from mergelab.plots import shapes as plots
from mergelab.scores.scoring import mean_score

FEW, ALL = COUNTS[0], COUNTS[-1]


def _ends(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name}_few": values[0], f"{name}_all": values[-1]}


def _shorter() -> Facts:
    products = torch.tensor(survey()["products"], dtype=torch.float64)
    lengths = products.diagonal().sqrt()
    measured = [float(products[:n, :n].sum().sqrt() / n / lengths[:n].mean()) for n in COUNTS]
    pairs = [cosines()[:n, :n] for n in COUNTS]
    means = [float((pair.sum() - n) / (n * (n - 1))) for n, pair in zip(COUNTS, pairs)]
    formula = [variance_kept(n, mean) ** 0.5 for n, mean in zip(COUNTS, means)]
    apart = [n**-0.5 for n in COUNTS]
    curves = {"measured": measured, "√((1+(N−1)ρ)/N), ρ the mean cosine": formula, "1/√N: nothing in common": apart}
    return {"curves": curves, "few": FEW, "all": ALL, "cosine": means[-1], **_ends("size", measured)}


def _both_ways() -> Facts:
    coins = [1 - 2.0 ** (1 - n) for n in COUNTS]
    curves = {"measured": survey()["opposed"], "if coins threw the signs": coins}
    return {"curves": curves, "few": FEW, "all": ALL, **_ends("opposed", survey()["opposed"]), **_ends("coins", coins)}


def _cost() -> Facts:
    alone = json.loads((ASSETS / "numbers" / "scores.json").read_text(encoding="utf-8"))
    average = [mean_score(point.scores).value for point in answers("star by number").baselines]
    experts = [sum(alone[skill][skill] for skill in SKILLS[:n]) / n for n in COUNTS]
    base = [sum(alone["base"][skill] for skill in SKILLS[:n]) / n for n in COUNTS]
    curves = {"each expert on its own task": experts, "their average": average, "the base": base}
    numbers = {**_ends("average", average), **_ends("experts", experts), **_ends("base", base)}
    return {"curves": curves, "few": FEW, "all": ALL, **numbers}


def _not_size_alone() -> Facts:
    scale, star = answers("scale"), answers("star")
    best, last = best_of(scale.points), scale.points[-1]
    at = next(point for point in star.points if point.value == ETA)
    facts: dict[str, Any] = {"x": [p.value for p in scale.points], "y": [p.mean.value for p in scale.points]}
    facts |= {"average": mean_score(scale.baselines[0].scores), "best": best.value, "eta": ETA}
    facts |= {"best_score": best.mean.value, "last_score": last.mean.value, "last": last.value, "star": at.mean.value}
    return facts | against(best, at)


CHAPTER = Chapter(
    "averaging",
    "Averaging loses",
    (
        Lesson(
            "The mean is shorter than its parts",
            r"""Average $N$ vectors of equal length whose cosines are about $\rho$: the mean has
            $\sqrt{(1+(N-1)\rho)/N}$ of their length. Task vectors have almost nothing in common, so every expert
            that is added makes all the others weaker.""",
            _shorter,
            r"""The mean of **{few}** task vectors has **{size_few:.0%}** of their length, that of **{all}** only
            **{size_all:.0%}**; the mean cosine of all is {cosine:.3f}.""",
            lambda facts: plots.curves(COUNTS, facts["curves"], ("number of experts", "length of the mean")),
            merge_of(8, "linear"),
            tab="merge",
        ),
        Lesson(
            "They pull both ways",
            r"""Look at single weights. Where one expert moves a weight up and another moves it down, the average does
            neither. With more experts there is hardly a weight on which all agree. This is called **interference**,
            and sign election is one answer to it.""",
            _both_ways,
            r"""Of all weights that anybody moves, **{opposed_few:.0%}** are pulled both ways by {few} experts, and
            **{opposed_all:.1%}** by {all}; if coins threw the signs it would be {coins_few:.0%} and
            {coins_all:.1%}.""",
            lambda facts: plots.curves(COUNTS, facts["curves"], ("number of experts", "weights pulled both ways")),
            merge_of(8, "linear"),
            fact="sign conflicts",
        ),
        Lesson(
            "What it costs",
            r"""The average of the first experts, scored on the held-out prompts of those experts' tasks. It slides
            towards the base, which was never fine-tuned at all. (Some tasks are easier than others: look at the
            gaps.) At this scale it is a slope and no cliff; with unrelated networks, in the last chapter, it is a
            cliff.""",
            _cost,
            r"""From {few} to {all} experts the average falls from **{average_few:.1%}** to **{average_all:.1%}**, while
            the experts themselves stay at {experts_few:.1%} and {experts_all:.1%}; the base has {base_few:.1%} and
            {base_all:.1%}.""",
            lambda facts: plots.curves(COUNTS, facts["curves"], ("number of experts", "mean exact match")),
            merge_of(8, "linear"),
            tab="merge",
        ),
        Lesson(
            "Then simply scale the mean up?",
            r"""That is **task arithmetic**: $W_0 + \lambda \sum_i \tau_i$, and $\lambda = 1/N$ is the average. A larger
            $\lambda$ does help, up to a point, beyond which everything breaks: the noise of the others grows as
            well. And the right $\lambda$ has to be found by trying.""",
            _not_size_alone,
            r"""The average of four scores **{average.value:.1%}**, the best λ ({best:.2g}) **{best_score:.1%}**, λ =
            {last:.0f} **{last_score:.1%}**. STAR at η = {eta}, untuned, has **{star:.1%}**: against it the tuned λ
            wins {wins} prompts and loses {losses}, {luck} ({chance}).""",
            lambda facts: plots.curves(
                facts["x"],
                {"task arithmetic": facts["y"]},
                ("λ", "mean exact match"),
                level=_level(facts["average"]),
            ),
            merge_of(4, "task_arithmetic", **{"lambda": 0.4}),
            tab="sweep-tab",
        ),
    ),
)


def _level(mean: Any) -> tuple:
    return "the average, 95 %", mean.value, mean.low, mean.high
