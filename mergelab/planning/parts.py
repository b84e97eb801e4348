"""In what parts a tensor is merged, and the memory that this takes: by its shape and the recipe alone."""

from math import prod

from mergelab.planning.plan import Plan

PART = 1 << 18  # entries of a tensor that are merged at a time, where each entry is merged on its own
WHOLE = 1 << 20  # entries of a tensor that is merged at once all the same, where parts are read more than once
TALL = 2  # so many times more rows than columns make a matrix tall
_LOOKS = 3  # copies of a tensor that looking at a merge takes
_FACTORS = 6  # square matrices of float32 that the factors of one delta take, while they are found


def parts(plan: Plan, name: str) -> list[slice | None]:
    """The rows that are merged at a time: all at once (None), or few where the recipe treats each of them on its own.

    They depend on the shape alone: not on how much memory there is, nor on who works.
    """
    shape, decompose = plan.base.entries[name].shape, plan.decomposes(name)
    entrywise = plan.method.goes_by_entries(decompose) and not (decompose and plan.steps)
    most = PART if entrywise and not plan.method.survey else WHOLE
    if not (entrywise or by_rows(plan, name)) or plan.needs_all_rows(name) or prod(shape) <= most:
        return [None]
    step = rows_at_a_time(shape)
    if entrywise:  # about as many in each, so that one fits where another was in memory
        step = -(-shape[0] // -(-shape[0] // step))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def by_rows(plan: Plan, name: str) -> bool:
    """Whether a matrix is so tall that its method, which decomposes it, takes its rows one by one."""
    shape, method = plan.base.entries[name].shape, plan.method
    if not plan.decomposes(name) or method.goes_by_entries(True) or plan.steps:
        return False
    return method.rowwise and shape[0] >= TALL * shape[1]


def rows_at_a_time(shape: tuple[int, ...]) -> int:
    """How many rows of a tensor make a part, at most."""
    return max(1, PART // max(1, prod(shape[1:])))


def held(plan: Plan, name: str, whole: bool = False) -> int:
    """The bytes that are held while a tensor is merged, about: base and deltas, and what the method makes of them.

    whole: the tensor is looked at as one, as an analysis and a sweep do, which hold a stack of the deltas beside.
    """
    shape, experts = plan.base.entries[name].shape, len(plan.experts)
    some = [None] if whole else parts(plan, name)
    entries = prod(shape) if some == [None] else rows_at_a_time(shape) * prod(shape[1:])
    shared = _FACTORS * shape[1] ** 2 * experts if len(some) > 1 and by_rows(plan, name) else 0
    merging = entries * (experts + 1) * (1 + plan.method.memory) + shared
    looking = entries * (2 * experts + 1 + _LOOKS) if whole else 0
    return round(4 * max(merging, looking))
