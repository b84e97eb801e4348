"""Chapter 6: variance collapse, and its repair: the two unrelated networks of the Repair tab."""

from functools import cache
from statistics import fmean

from mergelab.lessons.lesson import Chapter, Facts, Lesson
from mergelab.lessons.repairs import repairs
from mergelab.maths.moments import variance_kept
from mergelab.plots import shapes as plots
from mergelab.plots.repair import matching, repaired_bars, site_label, variance_ratio
from mergelab.repair.outcome import BASE, EXPERT, MERGED, PLAIN, REPAIRED, Outcome
from mergelab.repair.stories import STORIES, STORY
from mergelab.report import RepairReport

RECIPE = next(iter(STORIES.values()))[0]
ALIGNED, LEFT = "aligned", f"left, {MERGED}"
CLASSES = 10  # digits
MOST = 8  # networks, in the picture of the formula


@cache
def story() -> Outcome:
    """What the Repair tab opens with; made in advance, and measured anew by a test."""
    return Outcome.from_json(STORY.read_text(encoding="utf-8"))


def score(report: RepairReport, kind: str) -> float:
    """One of a task's scores."""
    return report.scores[kind]


def mean_of(kind: str) -> float:
    """The mean over the story's tasks of one kind of score."""
    return fmean(score(report, kind) for report in story().reports)


def ratios(stage: str) -> list[float]:
    """The share of the expert's variance that is left at each site, mean over tasks. stage: plain, merged, repaired"""
    found = [
        [one.ratio() for one in story().plain[report.task]]
        if stage == "plain"
        else [one.ratio(stage) for one in report.channels]
        for report in story().reports
    ]
    return [fmean(column) for column in zip(*found)]


def _formula() -> Facts:
    rho = fmean(story().matching.before)
    counts = range(1, MOST + 1)
    known = {"ρ = 1: the same network": 1.0, "ρ = ½": 0.5, "ρ = 0: strangers": 0.0}
    known |= {f"these networks: ρ = {rho:.2f}": rho}
    curves = {name: [variance_kept(n, value) for n in counts] for name, value in known.items()}
    return {"curves": curves, "counts": list(counts), "rho": rho, "left": variance_kept(2, rho), "networks": 2}


def _fades() -> Facts:
    plain, sites = ratios("plain"), [site_label(one.site) for one in story().reports[0].channels]
    numbers = {"first": plain[0], "last": plain[-1], "accuracy": mean_of(PLAIN), "expert": mean_of(EXPERT)}
    return {"sites": sites, "plain": plain, "chance": 1 / CLASSES, **numbers}


def _aligned() -> Facts:
    found = story().matching
    last = {"before_last": ratios("plain")[-1], "after_last": ratios("merged")[-1]}
    scores = {"plain": mean_of(PLAIN), "aligned": mean_of(MERGED)}
    return {"matching": found, "rho_before": fmean(found.before), "rho_after": fmean(found.after), **last, **scores}


def _repaired() -> Facts:
    names = {f"task_{i}": report.task for i, report in enumerate(story().reports)}
    kinds = {"aligned": MERGED, "repaired": REPAIRED, "expert": EXPERT}
    scores = {f"{k}_{i}": score(r, kind) for i, r in enumerate(story().reports) for k, kind in kinds.items()}
    return {**names, **scores, "last": ratios("repaired")[-1]}


def _fair() -> Facts:
    second = story().reports[1]
    controls = {
        "unaligned": f"{PLAIN}, {REPAIRED}",
        "base_before": BASE,
        "base": f"{BASE}, {REPAIRED}",
        "repaired": REPAIRED,
    }
    return {"task": second.task, **{name: score(second, kind) for name, kind in controls.items()}}


def _elsewhere() -> Facts:
    family, llamas = repairs()["family"], repairs()["llamas"]
    found = {
        "two unrelated readers": {MERGED: mean_of(MERGED), REPAIRED: mean_of(REPAIRED), LEFT: min(ratios("merged"))},
        "four of one base": family,
        "two unrelated Llamas": llamas,
    }
    bars = {
        "variance left where most is lost": [one[LEFT] for one in found.values()],
        "right before repair": [one[MERGED] for one in found.values()],
        "right after": [one[REPAIRED] for one in found.values()],
    }
    numbers = {"left": family[LEFT], "before": family[MERGED], "after": family[REPAIRED]}
    numbers |= {"llamas_left": llamas[LEFT], "llamas_before": llamas[MERGED], "llamas_after": llamas[REPAIRED]}
    return {"names": list(found), "bars": bars, "restored": llamas[f"left, {REPAIRED}"], **numbers}


def _lines(facts: Facts) -> plots.Figure:
    outcome = story()
    return variance_ratio(outcome.reports, outcome.plain, outcome.theory, ALIGNED)


def _bars(facts: Facts) -> plots.Figure:
    return repaired_bars(story().reports, story().tested, ALIGNED)


CHAPTER = Chapter(
    "collapse",
    "Collapse, repair",
    (
        Lesson(
            "Two networks that never met",
            r"""So far all experts came from one base. Take two that were trained from different beginnings: channel
            seven of one has nothing to do with channel seven of the other. Average $N$ channels of equal strength
            with correlation $\rho$, and the variance that is left is $(1+(N-1)\rho)/N$.""",
            _formula,
            r"""Two small networks that read digits: their channels correlate by **{rho:.2f}** on average, so one layer
            of the average of {networks} keeps about **{left:.0%}** of the variance.""",
            lambda facts: plots.curves(facts["counts"], facts["curves"], ("number of networks", "variance left")),
            RECIPE,
            tab="repair",
        ),
        Lesson(
            "Layer by layer it fades",
            r"""What one layer loses, the next cannot give back: it receives a weaker signal, and loses again. This is
            **variance collapse**. At the end hardly anything depends on the picture any more. (A shortcut passes
            layers by, and keeps a little more.)""",
            _fades,
            r"""After the first layer **{first:.0%}** of the experts' variance is left, after the last **{last:.1%}**.
            The plain average reads **{accuracy:.0%}** of the pictures right, where guessing gives {chance:.0%} and
            the experts have {expert:.0%}.""",
            lambda facts: plots.bars(facts["sites"], {"variance left": facts["plain"]}, "variance left"),
            RECIPE,
            tab="repair",
        ),
        Lesson(
            "First, align",
            r"""The order of a network's channels is arbitrary: permute them, permute the next layer's inputs alike, and
            the function is the same. So find the order in which the second network's channels agree best with the
            first one's, and average then.""",
            _aligned,
            r"""The mean correlation rises from **{rho_before:.2f}** to **{rho_after:.2f}**, the variance at the last
            layer from {before_last:.1%} to **{after_last:.0%}**, and accuracy from {plain:.0%} to
            **{aligned:.0%}**: better, and far from good.""",
            lambda facts: matching(facts["matching"].objective, facts["matching"].before, facts["matching"].after),
            RECIPE,
            tab="repair",
        ),
        Lesson(
            "Then, repair",
            r"""Give each channel $y$ back the mean and the spread that the task's expert has there: $y' = \sigma_e\,(y
            - \mu_m)/\sigma_m + \mu_e$. That is **TACT**, a scale and a shift a channel, fitted in one pass from the
            first layer to the last on a few pictures, without training. In the picture $0$ is the expert's own
            variance, $-1$ half of it.""",
            _repaired,
            r"""{task_0}: **{aligned_0:.0%}** becomes **{repaired_0:.0%}** (its expert {expert_0:.0%}). {task_1}:
            **{aligned_1:.0%}** becomes **{repaired_1:.0%}** (expert {expert_1:.0%}). The variance at the last layer
            is back at {last:.0%}.""",
            _lines,
            RECIPE,
            tab="repair",
        ),
        Lesson(
            "To be fair",
            r"""A repair knows the task: it has seen pictures of it and the expert's statistics. So ask what the same
            repair does where there is no good merge: without alignment, and for a network that never learned the
            task. Only what lies above these pale bars is the merge's own.""",
            _fair,
            r"""On {task}: the repaired merge **{repaired:.0%}**; the same repair without alignment **{unaligned:.0%}**;
            the other network alone {base_before:.0%}, and with the repair **{base:.0%}**.""",
            _bars,
            RECIPE,
            tab="repair",
        ),
        Lesson(
            "Where it helps, and where it does not",
            r"""Experts of one base share their channels: much less variance is lost, and a repair has little to give.
            Two unrelated language models lose nearly all of it; the repair brings it back, but an alignment
            of channels that hardly correspond leaves the wrong signal in them.""",
            _elsewhere,
            r"""Four readers of one base keep at least **{left:.0%}** everywhere, and the repair takes them from
            **{before:.0%}** to **{after:.0%}**: it takes more than it gives. Two Llamas, aligned, keep
            **{llamas_left:.0%}** where most is lost; repaired they have {restored:.0%} again, and go from
            **{llamas_before:.1%}** to **{llamas_after:.1%}** of answers: the variance is back, the answers are not.""",
            lambda facts: plots.bars(facts["names"], facts["bars"], "share"),
            RECIPE,
            tab="repair",
        ),
    ),
)
