"""Chapter 3: truncation and rescale, first on a matrix that the reader can touch."""

from statistics import fmean
from typing import Any

from torch import Tensor

from mergelab.lessons.answers import SKILLS, answers, merge_of
from mergelab.lessons.experts import MODULE, layer_of, singular_values
from mergelab.lessons.lesson import Chapter, Facts, Lesson
from mergelab.lessons.verdict import against, best_of
from mergelab.maths.inner import norm
from mergelab.maths.spectral import rank_keeping
from mergelab.method import METHODS
from mergelab.plots import shapes as plots
from mergelab.plots.parts import short_name
from mergelab.scores.scoring import mean_score

START = ((3.0, 1.0, 0.5, 0.0), (1.0, 2.0, 0.0, -0.5), (0.5, 0.0, -1.0, 1.0), (0.0, 1.5, 1.0, 0.5))
ETA = 40  # the paper's default
FORMULAS = r"""$$ r = \min\Big\{r : \sum_{k \le r} \sigma_k \ge \tfrac{\eta}{100} \sum_k \sigma_k\Big\} $$
$$ c = \frac{\sum_k \sigma_k}{\sum_{k \le r} \sigma_k} $$
$$ \tau' = c \sum_{k \le r} \sigma_k\, u_k v_k^\top $$"""
_GRID, _TENS = tuple(range(5, 101, 5)), tuple(range(10, 101, 10))


def errors(values: Tensor, eta: float) -> tuple[float, float]:
    """‖τ' − τ‖ / ‖τ‖ of a cut at η, and of the same with its scaling; from the singular values alone."""
    rank = rank_keeping(values, eta / 100)
    kept, gone, whole = values[:rank].square().sum(), values[rank:].square().sum(), values.square().sum()
    gain = values.sum() / values[:rank].sum()
    return float((gone / whole).sqrt()), float((((gain - 1) ** 2 * kept + gone) / whole).sqrt())


def _cut() -> Facts:
    values = singular_values("french")
    ranks = [rank_keeping(values, eta / 100) for eta in _GRID]
    squared = [float(values[:r].square().sum() / values.square().sum()) for r in ranks]
    at = _GRID.index(ETA)
    here = {"rank": ranks[at], "energy": squared[at], "gain": float(values.sum() / values[: ranks[at]].sum())}
    return {
        "ranks": [r / len(values) for r in ranks],
        "squared": squared,
        "name": f"French, {short_name(MODULE)}",
        "eta": ETA,
        "all": len(values),
        **here,
    }


def _fidelity() -> Facts:
    pairs = [errors(singular_values("french"), eta) for eta in _GRID]
    cut, scaled = pairs[_GRID.index(ETA)]
    return {"cuts": [c for c, _ in pairs], "scaleds": [s for _, s in pairs], "cut": cut, "scaled": scaled, "eta": ETA}


def _strength() -> Facts:
    layer = layer_of(MODULE, *SKILLS[:4])
    one, average = fmean(map(norm, layer.deltas)), norm(layer.mean)

    def sizes(rescale: bool) -> list[float]:
        return [norm(METHODS["star"](layer, eta=eta, rescale=rescale).delta) / one for eta in _TENS]

    scaled, cut, at = sizes(True), sizes(False), _TENS.index(ETA)
    return {
        "scaleds": scaled,
        "cuts": cut,
        "average": average / one,
        "scaled": scaled[at],
        "cut": cut[at],
        "eta": ETA,
    }


def _worth() -> Facts:
    star, cut = answers("star"), answers("cut")
    plain, best, bare = star.baselines[0], best_of(star.points), best_of(cut.points)
    scores = {"with rescale": star, "without": cut}
    facts: dict[str, Any] = {"x": [point.value for point in star.points], "average": mean_score(plain.scores)}
    facts |= {"curves": {name: [p.mean.value for p in report.points] for name, report in scores.items()}}
    for name, point in (("best", best), ("bare", bare)):
        facts |= {f"{name}_{key}": value for key, value in against(point, plain).items()}
        facts |= {f"{name}_eta": point.value, f"{name}_score": mean_score(point.scores).value}
    return facts


def _with_average(facts: Facts) -> plots.Figure:
    mean = facts["average"]
    level = ("the average, 95 %", mean.value, mean.low, mean.high)
    return plots.curves(facts["x"], facts["curves"], ("η", "mean exact match"), level=level)


CHAPTER = Chapter(
    "truncation",
    "Cut, rescale",
    (
        Lesson(
            "A matrix to touch",
            r"""STAR keeps the fewest directions whose strengths add up to $\eta$ % of all, drops the rest, and scales
            up what is left by one factor, so that the strengths add up to what they did before. Change a number,
            drag $\eta$, switch the rescaling off: everything follows.""",
            dict,
            r"""It is computed anew at each touch, in your browser, by the formulas above it.""",
            None,
            merge_of(4, "star", eta=40.0),
        ),
        Lesson(
            "What η cuts",
            r"""The same on the French expert's matrix. $\eta$ is a share of the nuclear norm, so a small $\eta$ keeps a
            handful of directions; but as the strong ones come first, that handful holds most of the squared size.""",
            _cut,
            r"""At η = {eta} STAR keeps **{rank}** of {all} directions; they hold **{energy:.0%}** of the squared size,
            and are scaled up **{gain:.1f}** times.""",
            lambda facts: plots.two_of_curves(
                _GRID,
                ("directions kept", {facts["name"]: facts["ranks"]}),
                ("squared size kept", {facts["name"]: facts["squared"]}),
                "η",
            ),
            merge_of(4, "star", eta=40.0),
        ),
        Lesson(
            "Rescaling makes a worse copy",
            r"""How far is the result from the $\tau$ that it stands for? No matrix of rank $r$ is nearer than the plain
            cut; so scaling it up moves it away again. If it still helps, the reason is not a better
            copy.""",
            _fidelity,
            r"""At η = {eta} the relative error is **{cut:.0%}** after the cut alone, and **{scaled:.0%}** after
            rescaling.""",
            lambda facts: plots.curves(
                _GRID,
                {"cut and rescaled": facts["scaleds"], "cut alone": facts["cuts"]},
                ("η", "error, relative to τ"),
            ),
            merge_of(4, "star", eta=40.0),
        ),
        Lesson(
            "Why it matters: averaging shrinks",
            r"""Now average four experts. Changes that point in different directions partly cancel, so the mean is
            shorter than any one of them, and a cut makes it shorter still. Rescaling gives the length back, in the
            strong directions.""",
            _strength,
            r"""In the same matrix, the average of four has **{average:.0%}** of the size of one expert's change; cut at
            η = {eta} it has **{cut:.0%}**, cut and rescaled **{scaled:.0%}**.""",
            lambda facts: plots.curves(
                _TENS,
                {"cut and rescaled": facts["scaleds"], "cut alone": facts["cuts"]},
                ("η", "size of the merged change"),
                level=("the average", facts["average"], facts["average"], facts["average"]),
            ),
            merge_of(4, "star", eta=40.0),
            tab="sweep-tab",
        ),
        Lesson(
            "What it is worth",
            r"""The merges of four experts, scored on held-out prompts of all four tasks. Look for a hill above the grey
            band, and at the curve that never rises above it. The best η was picked on these very prompts, which
            flatters it a little.""",
            _worth,
            r"""With rescaling the best η ({best_eta:.0f}) scores **{best_score:.1%}**, the average
            **{average.value:.1%}**: it wins {best_wins} prompts and loses {best_losses}, {best_luck}
            ({best_chance}). Without it the best cut (η = {bare_eta:.0f}) scores **{bare_score:.1%}**: {bare_wins}
            won, {bare_losses} lost, {bare_luck} ({bare_chance}). **It is the rescaling that gains, not the cut.**""",
            _with_average,
            merge_of(4, "star", eta=40.0),
            tab="sweep-tab",
        ),
    ),
)
