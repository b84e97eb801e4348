"""What the Repair tab says: what to look for in each picture, and what a run shows, with its own numbers."""

from statistics import fmean

from mergelab.markdown import plain
from mergelab.plots import repair as plots
from mergelab.repair.outcome import Outcome
from mergelab.repair.stories import STORIES
from mergelab.report import RepairReport
from mergelab.words import counted

LOOK_VARIANCE = (
    "**The variance collapses.** The average of N channels of correlation ρ keeps (1+(N−1)ρ)/N of their variance, "
    "and a deeper layer starts from what the ones before it have lost (norms and shortcuts lift it again). Look how "
    "far the dotted line lies below 0, the expert's own variance, how much alignment saves (dashed), and that repair "
    "brings it back to 0 (solid). One down is half the variance."
)
LOOK_SCORES = (
    "**What it is worth.** Accuracy on held-out data, with 95 % intervals. Look at repaired against the bars before "
    "it, then at the controls, whose names end in “, repaired”: they say how much the same repair does without "
    "alignment, or for a network that is not the merge."
)
LOOK_MATCHING = (
    "**Align.** Channel 7 of one network is not channel 7 of another; matching finds the order in which they agree. "
    "**Agreement:** what the matching makes large. **Correlation:** of two experts' channels, before and after. Look "
    "for the hump that moves to the right: only what correlates survives an average."
)
LOOK_SITES = (
    "**Where.** A column is a site, the first layer on the left; a row is a task. Grey has the expert's own variance, "
    "orange and then red have lost some, blue has too much. **Click a column** to open that site."
)
LOOK_CHANNELS = (
    "**Channel by channel.** Hollow points below the line are channels that the merge has made too quiet; the full "
    "ones are the same channels after repair. A repair puts them on the line."
)
ALIGN = "Reordering neurons, or turning a head inside, does not change what a network computes."
TARGET = "A scale and a shift per channel, fitted in one pass."
SAMPLES = "For calibration, a task. Bundled: 64 prompts, 256 pictures."
SITES = "A preset, or names of modules with |in or |out, commas between."
HEADS = "A classifier keeps each expert's own last layer."
WITHOUT = "Score also the merge without the task's expert."
LINES = "Each expert answers them itself, and is measured while it does: prompts alone give about half the gain."
OPENING = (
    "This example was made in advance; Run makes it here. Box 1 says what is merged: the form is used if chosen there."
)
HOME = (
    "Folded: one ordinary checkpoint per task, with the repair in its weights; transformers needs nothing else. "
    "Sidecars: the merge itself, and a small file per task that mergelab lays over it."
)


def about(story: str) -> str:
    """What a story merges, for the line under its name."""
    recipe = STORIES[story][0]
    if recipe is None:
        return "The base, experts and method of the form."
    return f"{recipe.method} of {', '.join(expert.source for expert in recipe.experts)}"


def summary(outcome: Outcome) -> str:
    """How the run ended, in a sentence for the status line."""
    done = f"{counted(len(outcome.reports), 'task')} repaired in {outcome.seconds:.0f} s"
    scored = [report.scores for report in outcome.reports if {"merged", "repaired", "expert"} <= report.scores.keys()]
    if not scored:
        return f"{done}: variance ratio {_ratios(outcome)}."
    before, after, expert = (fmean(scores[kind] for scores in scored) for kind in ("merged", "repaired", "expert"))
    said = f"{done}: mean accuracy {before:.0%} before the repair, {after:.0%} after it, {expert:.0%} of the experts."
    return f"{said} The variance is back ({_ratios(outcome)}), the answers are not." if after < expert / 2 else said


def _ratios(outcome: Outcome) -> str:
    before, after = (fmean(report.ratios[at] for report in outcome.reports) for at in (0, 1))
    return f"{before:.2f} → {after:.2f}"


def name_of_merge(outcome: Outcome) -> str:
    """What the merge that is repaired is called: aligned, if its experts were."""
    return plots.MERGED if outcome.matching.kind == "none" else plots.ALIGNED


def verdict(outcome: Outcome) -> str:
    """What the run shows, in sentences with its own numbers."""
    lines = []
    for report in outcome.reports:
        steps = [
            (plots.PLAIN, plots.PLAIN),
            ("merged", name_of_merge(outcome)),
            ("repaired", "repaired"),
            ("expert", "its expert"),
        ]
        told = [f"{name} {report.scores[kind]:.0%}" for kind, name in steps if kind in report.scores]
        before, after = report.ratios
        told.append(f"variance ratio {before:.2f} → {after:.2f}")
        held = [f"{count} channels {what}" for what, count in _counts(report).items() if count]
        lines.append(f"- **{plain(report.task)}**: {', '.join([*told, *held])}. {_exactness(report)}")
    lines += [f"- {plain(note)}" for note in dict.fromkeys(note for report in outcome.reports for note in report.notes)]
    lines += [_honest(outcome), _tested(outcome)]
    return "\n".join(line for line in lines if line)


def _counts(report: RepairReport) -> dict[str, int]:
    return {"dead": report.dead, "clamped": report.clamped, "skipped": report.skipped}


def _exactness(report: RepairReport) -> str:
    if report.difference is None:
        return ""
    left = f" Without a place in the weights: {plain(', '.join(report.unfolded))}." if report.unfolded else ""
    return f"Written into its weights, its outputs differ by at most {report.difference:.1g}.{left}"


def _honest(outcome: Outcome) -> str:
    told, base = [], outcome.trial["recipe"]["base_model"]
    for kind, sentence in (
        ("base, repaired", f"the unmerged base ({plain(base)})"),
        (f"{plots.PLAIN}, repaired", "the plain average, not aligned,"),
        ("without the expert, repaired", "the merge without the task's expert"),
    ):
        shares = [f"{r.scores[kind]:.0%} ({plain(r.task)})" for r in outcome.reports if kind in r.scores]
        told += [f"{sentence} comes to {', '.join(shares)}"] if shares else []
    if not told:
        return ""
    return f"- **How much is the repair's alone?** With it, {'; '.join(told)}. What lies above that is the merge's own."


def _tested(outcome: Outcome) -> str:
    error = outcome.matching.error
    return "" if error is None else (
        f"- Self-test before matching: a random reordering of neurons changed the outputs by {error:.1g} of their size."
    )  # fmt: skip
