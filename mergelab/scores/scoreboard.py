"""The scoreboard: several models on several tasks, as scores, as shares of what the experts reach, and as a table.

A model is anything that can be made to run; it is made only when its turn has come.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergelab.model import Running
from mergelab.scores.questions import Questions
from mergelab.scores.scoring import TaskScore, mean_score, scored
from mergelab.step import Step, relayed

BASE, MERGED, REPAIRED = "base", "merged", "repaired"


@dataclass(frozen=True)
class Board:
    """Scores of several models on several tasks. models: as they are shown; scores: (model, task) -> TaskScore."""

    models: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()  # those of the models that are experts
    scores: Mapping[tuple[str, str], TaskScore] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, in the order in which they were scored."""
        return tuple(dict.fromkeys(task for _, task in self.scores))

    def of(self, model: str) -> tuple[TaskScore, ...]:
        """One model's scores, in the order of the tasks; those that are there."""
        return tuple(self.scores[model, task] for task in self.tasks if (model, task) in self.scores)

    @property
    def merges(self) -> tuple[str, ...]:
        """The models that are neither the base nor an expert."""
        return tuple(name for name in self.models if name != BASE and name not in self.experts)

    def with_score(self, model: str, score: TaskScore) -> "Board":
        """The board with one more score, of a model that it may not have yet."""
        models = self.models if model in self.models else (*self.models, model)
        return replace(self, models=models, scores={**self.scores, (model, score.task): score})

    def by_task(self) -> dict[str, dict[str, float]]:
        """For a report: task -> the scores of the base, of the task's own expert and of the merges, by their names."""
        found: dict[str, dict[str, float]] = {}
        for task in self.tasks:
            whose = {BASE: BASE, "expert": self.master(task), **{name: name for name in self.merges}}
            known = {who: self.scores.get((name or "", task)) for who, name in whose.items()}
            found[task] = {who: score.value for who, score in known.items() if score}
        return found

    def ranked(self) -> list[str]:
        """The merges that have passed every task, the best mean first."""
        if not self.scores:
            return []
        whole = [name for name in self.merges if len(self.of(name)) == len(self.tasks)]
        sign = -1 if next(iter(self.scores.values())).higher_is_better else 1
        return sorted(whole, key=lambda name: sign * mean_score(self.of(name)).value)

    def winner(self, task: str) -> str | None:
        """The merge that does best at a task, of equals the first; None where there is no choice."""
        able = [name for name in self.merges if (name, task) in self.scores]
        return max(able, key=lambda name: _gain(self.scores[name, task])) if len(able) > 1 else None

    def master(self, task: str) -> str | None:
        """The expert that a task is measured by: the one named like the task, else the best at it."""
        able = [name for name in self.experts if (name, task) in self.scores]
        named = [name for name in able if name.removesuffix("-lora") == task]
        ranked = sorted(able, key=lambda name: _gain(self.scores[name, task]), reverse=True)
        return next(iter(named or ranked), None)

    def normalised(self, model: str) -> float | None:
        """The mean over tasks of model / expert (for perplexity expert / model): 1 is as good as the experts.

        None where a task is not scored, or where its expert has nothing right.
        """
        shares = []
        for task in self.tasks:
            mine, theirs = self.scores.get((model, task)), self.scores.get((self.master(task) or "", task))
            if mine is None or theirs is None or theirs.value == 0:
                return None
            ratio = mine.value / theirs.value
            shares.append(ratio if mine.higher_is_better else 1 / ratio)
        return sum(shares) / len(shares) if shares else None

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows: one row per model and task, then one per model for the mean; numbers, not texts."""
        headers = ["model", "task", "measure", "score", "95 % from", "to", "questions", "normalised"]
        rows: list[list[Any]] = []
        for model in self.models:
            own = self.of(model)
            for score in own:
                rows.append([model, score.task, score.measure, score.value, *score.interval, len(score.amounts), ""])
            if own and len(own) == len(self.tasks):
                mean, share = mean_score(own), self.normalised(model)
                count = sum(len(score.amounts) for score in own)
                last = "" if share is None else share
                rows.append([model, "mean", own[0].measure, mean.value, mean.low, mean.high, count, last])
        return headers, rows

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, with every question's outcome."""
        scores = [{"model": model} | score.to_dict() for (model, _), score in self.scores.items()]
        return {"models": list(self.models), "experts": list(self.experts), "scores": scores}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Board":
        """What `to_dict` wrote."""
        scores = {(one["model"], one["task"]): TaskScore.from_dict(one) for one in data["scores"]}
        return cls(tuple(data["models"]), tuple(data["experts"]), scores)


def _gain(score: TaskScore) -> float:
    return score.value if score.higher_is_better else -score.value


def scoreboard(
    models: Mapping[str, Callable[[], Running]],
    experts: Sequence[str],
    work: Sequence[tuple[str, Questions]],
    known: Mapping[tuple[str, Questions], TaskScore],
) -> Generator[Step, None, Board]:
    """Score each (model, questions) of the work, in its order. known: scores that need no new pass.

    A Step's `made` is the Board so far.
    """
    board = Board(tuple(models), tuple(experts), {})
    for done, (model, asked) in enumerate(work):
        step = Step(done, len(work), f"{model} · {asked.task}")
        yield step
        score = known.get((model, asked))
        if score is None:
            score = yield from _passed(models[model](), asked, step)
        board = board.with_score(model, score)
        yield replace(step, done=done + 1, made=board)
    return board


def _passed(run: Running, asked: Questions, step: Step) -> Generator[Step, None, TaskScore]:
    return (yield from relayed(scored(run, [asked]), lambda said: step))[0]
