"""Chapter 1: what a task vector is."""

from functools import cache

import torch

from mergelab.lessons.answers import SKILLS, answers, merge_of
from mergelab.lessons.experts import MODULE, change, corner, layer_of
from mergelab.lessons.lesson import Chapter, Facts, Lesson
from mergelab.lessons.survey import survey
from mergelab.maths.inner import norm
from mergelab.plots import shapes as plots
from mergelab.plots.parts import short_name

FOUR = SKILLS[:4]
TIMES = 10  # by how much a change has to be enlarged to be seen beside the weights


def _difference() -> Facts:
    base, delta = layer_of(MODULE, "french").base.double(), change("french")
    picture = {"before": base, "after": base + delta, "change": delta, f"change × {TIMES}": TIMES * delta}
    return {
        "share": norm(delta) / norm(base),
        "times": TIMES,
        "module": short_name(MODULE),
        "picture": {name: corner(matrix) for name, matrix in picture.items()},
    }


def _along() -> Facts:
    points = answers("one").points
    scores = {task: [p.scores[i].value for p in points] for i, task in enumerate(("french", "german"))}
    x = [point.value for point in points]
    start, end = x.index(0.0), x.index(1.0)
    facts = {f"{task}_{when}": y[i] for task, y in scores.items() for when, i in (("before", start), ("after", end))}
    return {"x": x, "scores": scores, **facts}


def _everywhere() -> Facts:
    sizes = {skill: survey()["sizes"][skill] for skill in FOUR}
    every = [size for row in sizes.values() for size in row]
    return {"sizes": sizes, "count": len(survey()["modules"]), "least": min(every), "most": max(every)}


@cache
def cosines() -> torch.Tensor:
    """The cosines between the task vectors of all eight experts, over all matrices. (expert, expert)"""
    products = torch.tensor(survey()["products"], dtype=torch.float64)
    lengths = products.diagonal().sqrt()
    return products / lengths / lengths[:, None]


def _apart() -> Facts:
    found = cosines()
    above = torch.triu(torch.ones_like(found), 1).bool()
    one, other = divmod(int(torch.where(above, found, -1).argmax()), len(found))
    pair = {"one": SKILLS[one], "other": SKILLS[other], "nearest": float(found[one, other])}
    return {"cosines": found.tolist(), "mean": float(found[above].mean()), "experts": len(found), **pair}


CHAPTER = Chapter(
    "task-vector",
    "Task vectors",
    (
        Lesson(
            "Fine-tuning is a difference",
            r"""Take a model that half knows many tasks, and train it further on one of them. What the training did is
            the difference of the weights, the **task vector** $\tau = W - W_0$. It has the shape of the weights, so
            it can be added, scaled and taken apart like them.""",
            _difference,
            r"""In matrix {module} of the French expert (you see its corner) the change is **{share:.1%}** of the
            weights' size: hardly to be seen, but for the right picture, where it is {times} times as large.""",
            lambda facts: plots.matrices(facts["picture"]),
            merge_of(1, "star", eta=40.0),
        ),
        Lesson(
            "It carries the task",
            r"""Go from the base towards the expert, and beyond: $W_0 + \lambda\,\tau$. At $\lambda = 0$ stands the
            base, at $\lambda = 1$ the expert. The skill that was trained comes with the vector, and another skill
            goes.""",
            _along,
            r"""Spelling French numbers goes from **{french_before:.0%}** to **{french_after:.0%}** of held-out prompts
            answered exactly; German, which nobody trained here, from **{german_before:.0%}** to
            **{german_after:.0%}**.""",
            lambda facts: plots.curves(facts["x"], facts["scores"], ("λ", "exact match")),
            merge_of(1, "task_arithmetic", **{"lambda": 1.0}),
            tab="sweep-tab",
        ),
        Lesson(
            "A little of it is everywhere",
            r"""No single layer learns French. Every matrix of the network moves, and each by a similar share of its own
            size. So a merge cannot pick out the layers that matter: it has to do well in all of them.""",
            _everywhere,
            r"""In all **{count}** matrices of four experts the change is between **{least:.1%}** and **{most:.1%}** of
            the weights' size.""",
            lambda facts: plots.curves(
                range(1, facts["count"] + 1), facts["sizes"], ("matrix, first layer on the left", "size of the change")
            ),
            merge_of(4, "star", eta=40.0),
            fact="change",
        ),
        Lesson(
            "Different tasks, different directions",
            r"""The cosine between two task vectors says whether two trainings pull the same way. Near zero they do not
            know of each other, and a merge could in principle hold both. Merging is the art of adding them without
            loss.""",
            _apart,
            r"""Between all pairs of **{experts}** experts the cosine is **{mean:.3f}** on average; the nearest pair,
            {one} and {other}, has **{nearest:.2f}**.""",
            lambda facts: plots.square(SKILLS, facts["cosines"], "the cosine"),
            merge_of(8, "linear"),
            fact="cosine of deltas",
        ),
    ),
)
