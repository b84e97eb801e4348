"""In what parts a tensor is merged, and the memory that this takes: by its shape and the recipe alone."""

from math import prod

from mergelab.planning.plan import Plan

PART = 1 << 18  # entries of a tensor that are merged at a time, where each entry is merged on its own
WHOLE = 1 << 20  # entries of a tensor that is merged at once all the same


def parts(plan: Plan, name: str) -> list[slice | None]:
    """The rows that are merged at a time: all at once (None), or few where the recipe treats each entry on its own.

    They depend on the shape alone: not on how much memory there is, nor on who works.
    """
    shape = plan.base.entries[name].shape
    whole = any(expert.adapter and expert.adapter.needs_all_rows(name) for expert in plan.experts)
    decompose = plan.decomposes(name)
    entrywise = plan.method.goes_by_entries(decompose) and not (decompose and plan.steps)
    if whole or not entrywise or prod(shape) <= WHOLE:
        return [None]
    step = rows_at_a_time(shape)
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def rows_at_a_time(shape: tuple[int, ...]) -> int:
    """How many rows of a tensor make a part."""
    return max(1, PART // max(1, prod(shape[1:])))


def held(plan: Plan, name: str) -> int:
    """The bytes that are held while a tensor is merged, about: base and deltas, and what the method makes of them."""
    shape = plan.base.entries[name].shape
    entries = prod(shape) if parts(plan, name) == [None] else rows_at_a_time(shape) * prod(shape[1:])
    return round(4 * entries * (len(plan.experts) + 1) * (1 + plan.method.memory))
