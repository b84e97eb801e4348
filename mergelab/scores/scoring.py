"""How well a model answers: exact match or perplexity, per task, each with its 95 % confidence interval.

This room knows a forward pass and the statistics of a few hundred answers. It does not know where a model or a
question comes from.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergelab.errors import MergeError
from mergelab.maths.interval import student, wilson
from mergelab.model import Running, all_first_choice, laid_out, logits_before
from mergelab.scores.questions import Questions

ALPHA = 0.05  # a difference that luck makes less often than this is called one
_LOGITS = 2**27  # numbers of one forward pass, at most


@dataclass(frozen=True)
class TaskScore:
    """How one model did on one task.

    amounts and sizes are per question: 1 or 0 right, out of 1; or for perplexity nats, over so many tokens.
    """

    task: str
    measure: str
    amounts: tuple[float, ...]
    sizes: tuple[int, ...]

    @property
    def value(self) -> float:
        """Exact match 0…1, or perplexity."""
        share = sum(self.amounts) / sum(self.sizes)
        return share if self.measure == "exact match" else _exp(share)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's for exact match; for perplexity that of a ratio of sums over texts (none for one text)."""
        if self.measure == "exact match":
            return wilson(self.value, len(self.amounts))
        share, half = _ratio(self.amounts, self.sizes)
        return _exp(share - half), _exp(share + half)

    @property
    def higher_is_better(self) -> bool:
        """Exact match wants to be high, perplexity low."""
        return self.measure == "exact match"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, with every question's outcome."""
        low, high = self.interval
        said = {"task": self.task, "measure": self.measure, "value": self.value, "low": low, "high": high}
        return said | {"questions": len(self.amounts), "amounts": list(self.amounts), "sizes": list(self.sizes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TaskScore":
        """What `to_dict` wrote."""
        return cls(data["task"], data["measure"], tuple(data["amounts"]), tuple(data["sizes"]))

    def half(self, odd: bool) -> "TaskScore":
        """The score on every second question: 2nd, 4th, … if `odd`, else 1st, 3rd, …"""
        return TaskScore(self.task, self.measure, self.amounts[odd::2], self.sizes[odd::2])


@dataclass(frozen=True)
class Mean:
    """A mean over tasks with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_score(scores: Sequence[TaskScore]) -> Mean:
    """The mean over tasks: of exact match; of perplexity the geometric one.

    Its interval for exact match is Wilson's for n = T²/Σ(1/n_t) questions, which is all of them where the tasks have
    the same number. Tasks differ, so it is a little too wide rather than too narrow.
    """
    count = len(scores)
    if scores[0].measure == "exact match":
        value = sum(score.value for score in scores) / count
        return Mean(value, *wilson(value, count**2 / sum(1 / len(score.amounts) for score in scores)))
    parts = [_ratio(score.amounts, score.sizes) for score in scores]
    middle, half = sum(p for p, _ in parts) / count, math.sqrt(sum(h * h for _, h in parts)) / count
    return Mean(_exp(middle), _exp(middle - half), _exp(middle + half))


def sign_test(one: Sequence[float], other: Sequence[float]) -> tuple[int, int, float]:
    """On the same questions: how many `one` has more on, how many `other`, and how likely so uneven a split is by luck.

    The exact two-sided sign test (McNemar's, for right and wrong).
    """
    wins = sum(a > b for a, b in zip(one, other, strict=True))
    losses = sum(a < b for a, b in zip(one, other, strict=True))
    count, least = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(least + 1)) * 2 / 2**count if count else 1.0
    return wins, losses, min(1.0, tail)


def wins(one: Sequence[TaskScore], other: Sequence[TaskScore]) -> tuple[int, int, float]:
    """Two models on the same questions: on how many `one` does better, on how many worse, and the sign test's p."""
    mine, theirs = ([amount for score in scores for amount in score.amounts] for scores in (one, other))
    more, fewer, luck = sign_test(mine, theirs)
    return (more, fewer, luck) if one[0].higher_is_better else (fewer, more, luck)


def scored(run: Running, asked: Sequence[Questions]) -> Generator[str, None, tuple[TaskScore, ...]]:
    """Score a causal model on several tasks. Yields the task's name at each batch, so that the caller can stop."""
    if asked and run.tokenizer is None:
        raise MergeError("This model has no tokenizer, so it answers no prompts and has no score here.")
    if getattr(run.model.config, "is_encoder_decoder", False):
        raise MergeError("Scores need a model that continues its prompt; this one has an encoder. Ask it instead.")
    scores = []
    for questions in asked:
        found: list[tuple[float, int]] = []
        for batch in _batches(_encoded(run, questions), run):
            yield questions.task
            found += _outcomes(run.model, batch, questions)
        amounts, sizes = zip(*found)
        scores.append(TaskScore(questions.task, questions.measure, amounts, sizes))
    return tuple(scores)


Encoded = tuple[list[int], list[int]]  # tokens of a prompt, tokens of its answer


def _encoded(run: Running, questions: Questions) -> list[Encoded]:
    """Each prompt and answer as tokens, encoded apart, so that they part where generation would begin."""
    stop = run.tokenizer.eos_token_id
    end = [stop] if questions.ends and questions.measure == "exact match" and stop is not None else []
    found = []
    for number, (prompt, answer) in enumerate(questions.pairs, start=1):
        before, after = _pair(run.tokenizer, prompt, answer)
        after = after + end
        if questions.measure != "exact match" and not after:
            raise MergeError(f"Text {number} of '{questions.task}' is one token, and nothing is predicted of it.")
        if run.room and len(before) + len(after) > run.room:
            size = f"has {len(before) + len(after)} tokens; this model has room for {run.room}"
            raise MergeError(f"Prompt {number} of '{questions.task}' {size}. Shorten it.")
        found.append((before, after))
    return found


def _pair(tokenizer: Any, prompt: str, answer: str) -> Encoded:
    """Through the chat template if the model has one; else with the space that parts the answer from the prompt."""
    if prompt and getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(answer, add_special_tokens=False)
    spaced = f" {answer}" if prompt and not (prompt[-1:].isspace() or answer[:1].isspace()) else answer
    before, after = tokenizer.encode(prompt), tokenizer.encode(spaced, add_special_tokens=False)
    if before and prompt == "" and before[-1] == tokenizer.eos_token_id:
        before = before[:-1]  # a tokenizer that ends every text
    return (before, after) if before else (after[:1], after[1:])  # something has to come first


def _batches(encoded: Sequence[Encoded], run: Running, most: int = 100) -> Iterator[Sequence[Encoded]]:
    """Consecutive questions, as many as one forward pass should hold."""
    words = getattr(run.model.config, "vocab_size", 50_000)
    start = 0
    while start < len(encoded):
        stop = start + 1
        while stop < min(len(encoded), start + most):
            longest = max(len(before) + len(after) for before, after in encoded[start : stop + 1])
            if (stop + 1 - start) * longest * words > _LOGITS:
                break
            stop += 1
        yield encoded[start:stop]
        start = stop


def _outcomes(model: Any, batch: Sequence[Encoded], questions: Questions) -> list[tuple[float, int]]:
    """For each question (1 or 0, 1), or (nats, tokens) of its answer. The answer is fed in: one forward pass tells.

    The same text in other tokens than the tokenizer's own counts as wrong.
    """
    ids, real, answer = laid_out(batch)
    logits = logits_before(model, ids, real)
    if questions.measure == "exact match":
        return [(float(yes), 1) for yes in all_first_choice(logits, ids, answer).tolist()]
    wanted, counted = ids[:, 1:].to(logits.device), answer[:, 1:]
    nats = -logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0].cpu().double()
    sums = torch.where(counted, nats, 0).sum(1)  # (question,)
    return list(zip(sums.tolist(), counted.sum(1).tolist()))


def _ratio(amounts: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """Σ amounts / Σ sizes, and half of its 95 % interval (the ratio estimator of cluster sampling)."""
    count, share = len(amounts), sum(amounts) / sum(sizes)
    if count < 2:
        return share, 0.0
    spread = sum((a - share * s) ** 2 for a, s in zip(amounts, sizes))
    return share, student(count - 1) * math.sqrt(spread * count / (count - 1)) / sum(sizes)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
