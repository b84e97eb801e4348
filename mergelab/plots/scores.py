"""Scores as pictures, with their intervals: the scoreboard's bars, and a sweep's curves."""

import math
from collections.abc import Sequence
from typing import Any

from mergelab.plots.parts import (
    COLOURS,
    MERGED_COLOUR,
    PALE,
    Figure,
    band,
    categories,
    empty,
    legend,
    margin,
    two_plots,
)  # fmt: skip
from mergelab.scores.knobs import EXPERTS, symbol
from mergelab.scores.scoreboard import BASE, MERGED, REPAIRED, Board
from mergelab.scores.scoring import Mean, mean_score
from mergelab.scores.sweep_report import Point, SweepReport

HATCHES = ("", "/", "x", ".")
OWN = "its own expert"  # the row of all experts, where each has done its own task alone
GRID = [[0, "rgba(239,68,68,0.22)"], [0.5, "rgba(245,158,11,0.2)"], [1, "rgba(16,185,129,0.5)"]]  # on any ground
SHARES = (
    "cosine to the average",
    "rank kept, share",
    "nuclear norm cut",
    "share pruned",
    "entries kept",
    "sign conflicts",
    "energy kept",
)


def board_bars(board: Board) -> Figure:
    """A group of bars per task, one bar per model, with intervals; the mean over tasks as the last group."""
    if not board.scores:
        return empty("Scores appear here.")
    exact = next(iter(board.scores.values())).measure == "exact match"
    groups, found = _laid_out(board)
    upright = {"textangle": -90 if len(found) > 3 else 0}  # numbers in narrow bars
    looks = _looks(list(found))
    traces = [_bars(name, groups, row, looks[name], exact) | upright for name, row in found.items()]
    layout = _bar_layout(exact)
    said = [
        ", ".join(f"{name} {_said(row[i], exact)}" for name, row in found.items() if row[i]) for i in range(len(groups))
    ]
    alt = "; ".join(f"{task}: {numbers}" for task, numbers in zip(groups, said))
    layout["meta"] = {"alt": alt, "tall": 520, "across": "task"}
    return {"data": traces, "layout": layout}


def board_grid(board: Board) -> Figure:
    """A row per model, a column per task and one for their mean; the best merge of each column bears a star."""
    if not board.scores:
        return empty("Scores appear here.")
    exact = next(iter(board.scores.values())).higher_is_better
    groups, found = _laid_out(board)
    best = [*map(board.winner, board.tasks), next(iter(board.ranked()), None)]
    stars = {(name, i) for i, name in enumerate(best[: len(groups)]) if name and len(board.merges) > 1}
    values = [[mean and round(mean.value, 5) for mean in row] for row in found.values()]
    texts = [
        [_said(mean, exact) + (" ★" if (name, i) in stars else "") for i, mean in enumerate(row)]
        for name, row in found.items()
    ]
    heat = {
        "type": "heatmap",
        "x": groups,
        "y": list(found),
        "z": values,
        "text": texts,
        "texttemplate": "%{text}",
        "colorscale": GRID if exact else [[1 - at, colour] for at, colour in reversed(GRID)],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y} on %{x}: %{text}<extra></extra>",
    } | ({"zmin": 0, "zmax": 1} if exact else {})
    x, y = categories(ticks="", side="top"), categories(ticks="", autorange="reversed")
    layout = {"margin": margin(top=30), "xaxis": x, "yaxis": y}
    alt = "; ".join(f"{name}: {', '.join(f'{g} {t}' for g, t in zip(groups, row))}" for name, row in zip(found, texts))
    layout["meta"] = {"alt": alt, "texts": True}
    return {"data": [heat], "layout": layout}


def _laid_out(board: Board) -> tuple[list[str], dict[str, list[Mean | None]]]:
    """The tasks, and their mean if there are several; each model's scores on them, the base's first.

    Experts that have not done every task are one model: of each task its own expert.
    """
    groups = [*board.tasks, "mean"] if len(board.tasks) > 1 else list(board.tasks)
    shown = [name for name in board.models if name not in board.experts or _everywhere(board, name)]
    rows = [(name, [_scored(board, name, task) for task in groups]) for name in shown]
    if not all(_everywhere(board, name) for name in board.experts):
        rows.insert(1, (OWN, [_own(board, task) for task in groups]))
    return groups, dict(rows)


def _everywhere(board: Board, model: str) -> bool:
    return len(board.of(model)) == len(board.tasks)


def _scored(board: Board, model: str, task: str) -> Mean | None:
    """A model's score on a task, or its mean over all tasks if the task is 'mean'; None where it is not known yet."""
    if task != "mean":
        score = board.scores.get((model, task))
        return score and Mean(score.value, *score.interval)
    return mean_score(board.of(model)) if _everywhere(board, model) else None


def _own(board: Board, task: str) -> Mean | None:
    """The same of whichever expert is the task's own."""
    if task != "mean":
        return _scored(board, board.master(task) or "", task)
    pairs = [(board.master(name), name) for name in board.tasks]
    found = [board.scores[pair] for pair in pairs if pair in board.scores]
    return mean_score(found) if len(found) == len(pairs) else None


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each row's bars look like: some have a colour of their own, the others share out what is left, with hatches
    once all are taken."""
    fixed = {BASE: PALE, OWN: COLOURS[2], MERGED: COLOURS[0], REPAIRED: COLOURS[4], "A": COLOURS[0], "B": COLOURS[1]}
    fixed = {name: fixed[name] for name in names if name in fixed}
    free, others = [c for c in COLOURS if c not in fixed.values()], [name for name in names if name not in fixed]
    found = {name: {"color": colour} for name, colour in fixed.items()}
    for i, name in enumerate(others):
        hatch = HATCHES[i // len(free) % len(HATCHES)]
        found[name] = {"color": free[i % len(free)]} | ({"pattern": {"shape": hatch}} if hatch else {})
    return found


def _bars(name: str, groups: list[str], found: Sequence[Mean | None], look: dict, exact: bool) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": groups,
        "y": [mean and round(mean.value, 5) for mean in found],
        "error_y": _whiskers(found),
        "marker": look,
        "text": [_said(mean, exact) for mean in found],
        "textposition": "inside",
        "insidetextanchor": "start",
        "customdata": [_said(mean, exact, whole=True) for mean in found],
        "hovertemplate": f"%{{x}}, {name}: %{{customdata}}<extra></extra>",
    }


def _whiskers(found: Sequence[Mean | None]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [mean and round(mean.high - mean.value, 5) for mean in found],
        "arrayminus": [mean and round(mean.value - mean.low, 5) for mean in found],
        "thickness": 1.2,
        "width": 3,
        "color": MERGED_COLOUR,
    }


def _said(mean: Mean | None, exact: bool, whole: bool = False) -> str:
    if mean is None:
        return ""
    numbers = [f"{x:.1%}" if exact else f"{x:.3g}" for x in (mean.value, mean.low, mean.high)]
    return f"{numbers[0]} (95 %: {numbers[1]} to {numbers[2]})" if whole else numbers[0]


def _bar_layout(exact: bool) -> dict[str, Any]:
    y = {"tickformat": ".0%", "range": [0, 1.04]} if exact else {"type": "log", "title": {"text": "perplexity"}}
    return {
        "barmode": "group",
        "uniformtext": {"minsize": 9, "mode": "hide"},  # where bars are too narrow for their numbers
        "margin": margin(top=40),
        "xaxis": {"automargin": True, "fixedrange": True, "type": "category"},
        "yaxis": y | {"automargin": True, "fixedrange": True},
        "legend": legend(),
    }


def sweep_curves(report: SweepReport) -> Figure:
    """Left: scores against the knob, the average, the best point. Right: the geometry. customdata: a point's index."""
    if not report.points:
        return empty("A sweep appears here, point by point.")
    x = [point.value for point in report.points]
    traces = _score_curves(report, x) + _geometry_curves(report, x)
    exact = not report.points[0].scores or report.points[0].scores[0].measure == "exact match"
    score = {"tickformat": ".0%", "rangemode": "tozero"} if exact else {"type": "log"}
    name = "exact match" if exact else "perplexity"
    layout = two_plots((name, score), ("geometry", {"rangemode": "tozero"}), symbol(report.knob))
    if not report.points[0].scores:
        traces, layout = _right_alone(traces, layout)
    if report.knob == EXPERTS:
        for axis in {"xaxis", "xaxis2"} & layout.keys():
            layout[axis]["dtick"] = 1
    layout["legend"]["traceorder"] = "normal"
    if report.points[0].scores:
        layout["legend2"] = layout["legend"] | {"x": 1, "xanchor": "right", "y": -0.14, "yanchor": "top"}
    scored = {"pair": True, "tall": 820} if report.points[0].scores else {}
    layout["meta"] = scored | {"alt": _sweep_alt(report, exact)}
    return {"data": traces, "layout": layout}


def _right_alone(traces: list[dict[str, Any]], layout: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Of two plots the right one, as the only one."""
    places = ("xaxis", "yaxis", "legend")
    alone = [{key: value for key, value in trace.items() if key not in places} for trace in traces]
    axes = {"xaxis": layout["xaxis2"] | {"domain": [0, 1], "anchor": "y"}, "yaxis": layout["yaxis2"] | {"anchor": "x"}}
    return alone, {key: value for key, value in layout.items() if key not in ("xaxis2", "yaxis2")} | axes


def _score_curves(report: SweepReport, x: list[float]) -> list[dict[str, Any]]:
    if not report.points[0].scores:
        return []
    tasks = list(dict.fromkeys(score.task for point in report.points for score in point.scores))
    values = [{score.task: score.value for score in point.scores} for point in report.points]
    traces = [
        _curve(task, x, [own.get(task) for own in values], {"color": COLOURS[i % 8], "width": 1.2}, opacity=0.75)
        for i, task in enumerate(tasks)
        if len(tasks) > 1
    ]
    traces += _average(report, x)
    means = [point.mean for point in report.points]
    bold = {"width": 4, "color": "#6366f1"}
    whole = _curve("mean" if len(tasks) > 1 else tasks[0], x, [mean.value for mean in means], bold)
    traces.append(whole | {"error_y": _whiskers(means), "mode": "lines+markers", "marker": {"size": 8}})
    return traces + _best(report)


def _best(report: SweepReport) -> list[dict[str, Any]]:
    if report.best is None:
        return []
    point = report.points[report.best]
    star = {"symbol": "star", "size": 17, "color": "#f59e0b", "line": {"width": 1, "color": "#92400e"}}
    spot = _curve("best on these prompts", [point.value], [point.mean.value], {})
    return [spot | {"mode": "markers", "marker": star, "customdata": [str(report.best)]}]


def _average(report: SweepReport, x: list[float]) -> list[dict[str, Any]]:
    """The average of the same experts: a level line with its interval, or one point per number of experts."""
    plain: Sequence[Point] = [point for point in report.baselines if point.scores]
    if not plain:
        return []
    means = [point.mean for point in plain]
    at = [point.value for point in plain]
    if report.knob != EXPERTS:
        at, means = [x[0], x[-1]], [means[0], means[0]]
    between = band("the average", at, [mean.low for mean in means], [mean.high for mean in means])
    middle = _curve("the average", at, [mean.value for mean in means], {"color": PALE, "width": 2, "dash": "dash"})
    return [*between, middle | {"customdata": None}]


def _geometry_curves(report: SweepReport, x: list[float]) -> list[dict[str, Any]]:
    right = {"xaxis": "x2", "yaxis": "y2", "legend": "legend2"}
    names = [name for name in SHARES if any(name in point.facts for point in report.points)]
    traces = [
        _curve(name, x, [point.facts.get(name) for point in report.points], {"color": COLOURS[(4 + i) % 8], "width": 2})
        | right
        for i, name in enumerate(names)
    ]
    sizes = [_relative_size(report, i) for i in range(len(report.points))]
    return traces + [_curve("size, relative to the average's", x, sizes, {"color": MERGED_COLOUR, "width": 3}) | right]


def _relative_size(report: SweepReport, index: int) -> float | None:
    plain = report.baseline(index)
    size = plain.facts["merged change"] if plain else 0.0
    return report.points[index].facts["merged change"] / size if size else None


def _curve(name: str, x: Sequence[float], y: Sequence[float | None], line: dict, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": [None if value is None or math.isnan(value) else float(f"{value:.5g}") for value in y],
        "line": line,
        "marker": {"size": 5},
        "customdata": [str(i) for i in range(len(x))],
        "hovertemplate": f"{name}<br>%{{x}}: %{{y}}<extra></extra>",
        **more,
    }


def _sweep_alt(report: SweepReport, exact: bool) -> str:
    if not report.points[0].scores:
        return f"The geometry of the merged change against {symbol(report.knob)}, at {len(report.points)} points."
    said = "; ".join(f"{symbol(report.knob)} {point.value:g}: {_said(point.mean, exact)}" for point in report.points)
    plain = report.baselines and report.baselines[0].scores and report.knob != EXPERTS
    return said + (f"; the average: {_said(report.baselines[0].mean, exact)}" if plain else "")
