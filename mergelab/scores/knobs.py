"""What can be swept: a method's numbers and the number of experts; and over which values."""

import math
from collections.abc import Sequence

from mergelab.errors import MergeError, did_you_mean
from mergelab.method import Knob, MergeMethod

EXPERTS = "experts"  # the knob that is no method's: how many of the recipe's experts are merged, the first ones first
MOST_POINTS = 60


def symbol(knob: str) -> str:
    """A knob's name as the papers write it."""
    return {"eta": "η", "lambda": "λ"}.get(knob, knob)


def knobs_of(method: MergeMethod, experts: int) -> dict[str, Knob]:
    """All that can be swept: the method's numeric settings, and the number of experts."""
    found = {s.name: s.knob for s in method.settings if isinstance(s.knob, Knob)}
    fewest = max(method.fewest, 2)
    if experts > fewest:
        found[EXPERTS] = Knob(fewest, experts, "how many of the recipe's experts, the first ones first", step=1)
    return found


def values_from(text: str) -> tuple[float, ...]:
    """The values in `LOW:HIGH:STEP` (both ends included) or `A,B,C`; MergeError if it is neither."""
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        low, high, step = (float(part) for part in text.split(":"))
        count = math.floor((high - low) / step + 1e-9) + 1
    except (ValueError, ZeroDivisionError, OverflowError):
        raise MergeError(f"Values are written as 10:100:10 (from, to, step) or 10,20,50, not '{text}'.") from None
    if not 1 <= count <= MOST_POINTS:
        raise MergeError(f"'{text}' is {max(count, 0)} values; a sweep takes 1 to {MOST_POINTS}.")
    return tuple(round(low + step * i, 10) for i in range(count))


def spread(low: float, high: float, count: int, step: float | None = None) -> tuple[float, ...]:
    """`count` values from low to high, evenly, each on the knob's grid; those that fall together are one."""
    if count < 2 or low == high:
        return (low,)
    raw = [low + (high - low) * i / (count - 1) for i in range(count)]
    return tuple(dict.fromkeys(round(round(v / step) * step, 10) if step else v for v in raw))


def sensible_range(knob: Knob, points: int = 10) -> tuple[float, float, int]:
    """From, to and how many: about `points` round values of a knob, as 10, 20 … 100 of one from 1 to 100."""
    rough = (knob.high - knob.low) / points
    scale = 10 ** math.floor(math.log10(rough))
    step = max(next(scale * size for size in (1, 2, 2.5, 5, 10) if scale * size >= rough * 0.999), knob.step or 0)
    low, high = math.ceil(round(knob.low / step, 6)) * step, math.floor(round(knob.high / step, 6)) * step
    return round(low, 10), round(high, 10), round((high - low) / step) + 1


def checked_values(method: MergeMethod, experts: int, knob: str, values: Sequence[float]) -> tuple[float, ...]:
    """The values, rising and without repeats; MergeError for a knob that is none, or a value that it does not take."""
    known = knobs_of(method, experts)
    if knob not in known:
        hint = did_you_mean(knob, known) or "It has none: choose another method, or more than two experts."
        raise MergeError(f"{method.title} has no knob '{knob}' that can be swept. {hint}")
    given = [float(value) for value in values]
    found = tuple(sorted(set(given)))
    low, high = known[knob].low, known[knob].high
    for value in (*given[:1], *given[-1:], *given):  # the ends first: of a range they are what was written
        if not low <= value <= high or (knob == EXPERTS and value != int(value)):
            kind = "a whole number" if knob == EXPERTS else "a number"
            raise MergeError(f"'{knob}' must be {kind} from {low:g} to {high:g}, not {value:g}.")
    if not 1 <= len(found) <= MOST_POINTS:
        raise MergeError(f"A sweep takes 1 to {MOST_POINTS} points, and {len(found)} were asked for.")
    return found
