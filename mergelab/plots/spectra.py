"""Report -> plotly figure, as a plain dict: a hundred times faster to build than go.Figure (the tests do build that).

One function per picture. Colours of text and grid are left to the page's theme. assets/panel.js reads `layout.meta`:
`eta` is what a figure needs to follow η in the browser; `pair` marks two plots that stand one above the other on a
phone, `tall` their height there; `says` is the sentence over the heatmap; `across` is what the x axis is, where no
title says so; every figure has `alt`.
"""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mergelab.maths.spectral import ranks_keeping
from mergelab.recipes.varying import depths, elsewhere, value_at
from mergelab.report import FACTS, LayerReport, Report
from mergelab.words import counted

Figure = dict[str, Any]
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#14b8a6", "#ec4899", "#84cc16")
MERGED_COLOUR = "#8b8b95"
LIVE = "rank kept"  # the fact that follows η in the browser
GRID = np.arange(101) / 100  # shares of the nuclear norm: η in whole percent
EVEN, LEAST_RANGE = 0.03, 0.15  # shares of the largest number: what looks even, and how far the colours reach at least
_MOST_POINTS = 160  # of one curve
_MOST_LABELS = 36  # of one axis


def fact_heatmap(report: Report, fact: str, eta: float) -> Figure:
    """One number per module and expert: the modules in the model's order from left to right, a row per expert.

    LIVE follows η in the browser: the colour is the share of all directions, the number in a cell is the rank.
    """
    layers = report.decomposed
    if not layers:
        return empty("No tensor of this model is decomposed.")
    fact = fact if fact in report.facts else report.facts[0]  # a name may come from a browser
    if follows_eta(report, fact):
        return _rank_heatmap(report, eta)
    z = _cells(report, fact)
    rows = report.experts if len(z) == len(report.experts) else ("all experts",)
    figure = _heat(layers, rows, z, _short(z), f"{fact}: %{{z:.4g}}")
    figure["data"][0] |= dict(zip(("zmin", "zmax"), _colour_range(z)))
    alt = f"Heatmap of {fact}: {len(layers)} modules from left to right, {len(rows)} rows."
    figure["layout"]["meta"] = {"alt": alt, "across": "module", "says": f"{fact}: {FACTS.get(fact, fact)}."}
    return figure


def follows_eta(report: Report, fact: str) -> bool:
    """Whether a fact's heatmap follows η in the browser: other methods than STAR keep ranks of their own."""
    return fact == LIVE and report.recipe.get("merge_method") == "star"


def is_even(report: Report, fact: str) -> bool:
    """Whether a fact is nearly the same everywhere, so that no column of its heatmap stands out."""
    z = _cells(report, fact)
    return bool(np.ptp(z) <= EVEN * np.abs(z).max())


def _cells(report: Report, fact: str) -> np.ndarray:
    """A fact of all decomposed layers, (row, module): a row per expert, or one for all of them."""
    values = [layer.facts[fact] for layer in report.decomposed]
    return np.array([v if isinstance(v, tuple) else [v] for v in values], dtype=float).T


def _colour_range(z: np.ndarray) -> tuple[float, float]:
    """The ends of the colours: never so near to each other that numbers which are all but equal look different."""
    low, high = float(z.min()), float(z.max())
    missing = max(0.0, LEAST_RANGE * float(np.abs(z).max()) - (high - low))
    return low - missing / 2, high + missing / 2 or 1.0


def _rank_heatmap(report: Report, eta: float) -> Figure:
    layers = report.decomposed
    table = np.stack([_rank_table(layer) for layer in layers], axis=1)  # (expert, module, η)
    full = np.array([layer.full_rank for layer in layers])
    held = own_etas(report)
    ranks = np.stack([table[:, i, round(eta if own is None else own)] for i, own in enumerate(held)], axis=1)
    z = ranks / full
    figure = _heat(layers, report.experts, z, ranks.astype(str).tolist(), "directions kept: %{text} (%{z:.0%})")
    figure["data"][0] |= {"zmin": 0, "zmax": float(z.max()) or 1.0}  # the slider moves it with what is drawn
    figure["data"][0]["colorbar"] |= {"tickformat": ".0%", "title": {"text": "share kept", "side": "right"}}
    size = f"{counted(len(layers), 'module')}, {counted(len(report.experts), 'expert')}"
    alt = f"Heatmap of the share of singular directions kept: {size}."
    figure["layout"]["meta"] = {
        "alt": alt,
        "across": "module",
        "eta": {
            "kind": "heat",
            "shape": table.shape,
            "table": _u16(table),
            "full": full.tolist(),
            "held": held,
            "gain": _mean_gains(layers, table, held) if rescales(report) else None,
        },
    }
    return figure


def rescales(report: Report) -> bool:
    """Whether STAR scales up what it keeps."""
    return bool(elsewhere((report.recipe.get("parameters") or {}).get("rescale", True)))


def _mean_gains(layers: Sequence[LayerReport], table: np.ndarray, held: Sequence[float | None]) -> list[float]:
    """By what STAR scales up what it keeps, on average over modules and experts, for each η in whole percent. (101,)

    table: the ranks that it keeps, (expert, module, 101).
    """
    found = []
    for i, (layer, own) in enumerate(zip(layers, held)):
        for values, ranks in zip(layer.curves["singular_values"], table[:, i]):
            if len(values):
                mass = np.cumsum(np.array(values, dtype=float))
                gains = mass[-1] / mass[np.maximum(ranks.astype(int), 1) - 1]
                found.append(gains if own is None else np.full(len(GRID), gains[round(own)]))
    return [round(float(gain), 3) for gain in np.mean(found, axis=0)] if found else [1.0] * len(GRID)


def own_etas(report: Report) -> list[float | None]:
    """For each decomposed layer the η that a filter or gradient of the recipe gives it; None where the slider holds."""
    setting, names = (report.recipe.get("parameters") or {}).get("eta"), [layer.name for layer in report.decomposed]
    if not isinstance(setting, list):
        return [None] * len(names)
    rest, depth = elsewhere(setting), depths(layer.name for layer in report.layers)
    by_filter = [e for e in setting if isinstance(e, dict) and e.get("filter", "*") != "*"]
    found = [value_at(by_filter, name, depth.get(name, 0.0)) if by_filter else None for name in names]
    gradient = [value_at(rest, name, depth.get(name, 0.0)) if isinstance(rest, list) else None for name in names]
    return [other if own is None else own for own, other in zip(found, gradient)]


def _heat(layers: Sequence[LayerReport], rows: Sequence[str], z: np.ndarray, text: list, hover: str) -> Figure:
    names = [layer.name for layer in layers]
    crowded = len(layers) > _MOST_LABELS
    ticks = [i for i in range(len(layers)) if not crowded or i % -(-len(layers) // _MOST_LABELS) == 0]
    trace = {
        "type": "heatmap",
        "x": list(range(len(layers))),
        "y": list(rows),
        "z": np.round(z, 6).tolist(),
        "text": text,
        "customdata": [names] * len(rows),
        "hovertemplate": "%{customdata}<br>%{y}: " + hover + "<extra></extra>",
        "colorscale": "Viridis",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "len": 1},
        **({} if crowded else {"texttemplate": "%{text}", "textfont": {"size": _size_of(text)}}),
    }
    axis = {"tickmode": "array", "tickvals": ticks, "ticktext": [short_name(names[i]) for i in ticks], "tickangle": -60}
    layout = {
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "xaxis": axis | {"automargin": True, "showgrid": False, "zeroline": False, "fixedrange": True},
        "yaxis": {
            "autorange": "reversed",
            "automargin": True,
            "showgrid": False,
            "type": "category",
            "fixedrange": True,
        },
    }
    return {"data": [trace], "layout": layout}


def spectra(report: Report, module: str, eta: float | None) -> Figure:
    """Left: one module's singular values, expert by expert, and of the merge. Right: how their sum builds up.

    eta: draws where STAR cuts at that share of the nuclear norm (percent); None draws no cut.
    """
    layer = layer_named(report, module)
    curves = [np.array(values, dtype=float) for values in layer.curves.get("singular_values", ())]
    traces: list[dict] = []
    for name, colour, values in zip(report.experts, _colours(len(curves)), curves):
        traces += paired_curves(name, values, {"color": colour, "width": 2})
    merged = np.array(layer.curves.get("merged_singular_values", ()), dtype=float)
    title = "merged" if eta is None else f"merged at η = {eta:g}"
    traces += paired_curves(title, merged, {"color": MERGED_COLOUR, "width": 2, "dash": "dash"})
    layout = two_plots(
        ("singular value σ", {"type": "log", "exponentformat": "power", "dtick": 1}),
        ("share of the nuclear norm", {"tickformat": ".0%", "range": [0, 1.02]}),
    )
    layout["uirevision"] = module
    layout["meta"] = {
        "pair": True,
        "alt": f"Singular values of {module} for {counted(len(curves), 'expert')}, and their running sum.",
    }
    if eta is not None:
        table = _rank_table(layer)
        colours = _colours(len(curves))
        held = own_etas(report)[report.decomposed.index(layer)]
        meta = {"kind": "cuts", "shape": table.shape, "table": _u16(table), "colours": colours, "held": held}
        layout["meta"]["eta"] = meta
    return {"data": traces, "layout": layout}


def joint_space(report: Report, module: str) -> Figure:
    """DRM's joint basis of one module. Left: its spectrum. Right: which expert owns how much of each direction."""
    layer = layer_named(report, module)
    joint = np.array(layer.curves.get("joint_singular_values", ()), dtype=float)
    if not len(joint):
        return empty("This method has no joint space. Choose DRM-H or DRM-V, then press Analyse.")
    traces = paired_curves("joint", joint, {"color": MERGED_COLOUR, "width": 2})[:1]
    for name, colour, share in zip(report.experts, _colours(len(report.experts)), layer.curves["ownership"]):
        at = _points(len(share))
        hover = f"direction %{{x}}: {name} has %{{y:.0%}}<extra></extra>"
        area = {"type": "scatter", "mode": "lines", "stackgroup": "owner", "line": {"width": 0, "color": colour}}
        y = np.round(np.array(share)[at], 5).tolist()
        traces.append(
            area | {"name": name, "x": (at + 1).tolist(), "y": y, "xaxis": "x2", "yaxis": "y2", "hovertemplate": hover}
        )
    layout = two_plots(
        ("joint singular value", {"type": "log", "exponentformat": "power", "dtick": 1}),
        ("share of the direction", {"tickformat": ".0%", "range": [0, 1.02]}),
    )
    layout["uirevision"] = module
    layout["meta"] = {
        "pair": True,
        "alt": f"Joint spectrum of {module}, and each expert's share of every joint direction.",
    }
    return {"data": traces, "layout": layout}


def score_bars(rows: Sequence[tuple]) -> Figure:
    """Exact match per task, each 0…1. rows: (task, base, expert, merged), or with the repaired merge at the end."""
    if not rows:
        return empty("Scores appear here after a merge of bundled experts.")
    columns = list(zip(*rows))
    kinds = (("base", "#9ca3af"), ("its own expert", COLOURS[2]), ("merged", COLOURS[0]), ("repaired", COLOURS[4]))
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": list(columns[0]),
            "y": list(values),
            "marker": {"color": colour},
            "text": [f"{100 * value:.1f}" for value in values],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": f"%{{x}}, {name}: %{{y:.1%}}<extra></extra>",
        }
        for (name, colour), values in zip(kinds, columns[1:])
    ]
    layout = {
        "barmode": "group",
        "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
        "xaxis": {"automargin": True, "fixedrange": True},
        "yaxis": {"tickformat": ".0%", "range": [0, 1.08], "automargin": True, "fixedrange": True},
        "legend": {"orientation": "h", "y": 1.14, "x": 0},
        "meta": {"alt": "; ".join(_told(*row) for row in rows), "across": "task"},
    }
    return {"data": traces, "layout": layout}


def _told(task: str, *scores: float) -> str:
    names = ("base", "expert", "merged", "repaired")
    return f"{task}: " + ", ".join(f"{name} {score:.1%}" for name, score in zip(names, scores))


def empty(sentence: str) -> Figure:
    """A figure with nothing in it but a sentence that says why."""
    note = {"text": sentence, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    hidden = {"visible": False, "fixedrange": True}
    return {"data": [], "layout": {"annotations": [note], "xaxis": hidden, "yaxis": hidden, "meta": {"alt": sentence}}}


def layer_named(report: Report, module: str) -> LayerReport:
    """The decomposed layer of that name; the first one if there is none (a name may come from a browser)."""
    return next((layer for layer in report.decomposed if layer.name == module), report.decomposed[0])


def short_name(module: str) -> str:
    """A tensor's name, short enough for an axis: 'model.layers.3.self_attn.q_proj.weight' -> '3 q'."""
    parts = module.removesuffix(".weight").split(".")
    number = next((part for part in parts if part.isdigit()), "")
    last = ".".join(parts[-2:]) if parts[-1] in ("dense", "kernel") else parts[-1].removesuffix("_proj")
    return f"{number} {last}".strip()


def paired_curves(name: str, values: np.ndarray, line: dict) -> list[dict]:
    """A spectrum and its running sum, as two traces that share one legend entry."""
    at = _points(len(values))
    index = (at + 1).tolist()
    common = {"type": "scatter", "mode": "lines", "name": name, "legendgroup": name, "line": line, "x": index}
    mass = values.cumsum() / max(values.sum(), 1e-30)
    hover = f"{name}<br>direction %{{x}}: σ = %{{y:.3g}}<extra></extra>"
    sums = f"{name}<br>the first %{{x}} hold %{{y:.0%}}<extra></extra>"
    right = {"xaxis": "x2", "yaxis": "y2", "showlegend": False, "hovertemplate": sums}
    return [
        common | {"y": [float(f"{v:.5g}") for v in values[at]], "hovertemplate": hover},
        common | right | {"y": np.round(mass[at], 5).tolist()},
    ]


def two_plots(left: tuple[str, dict], right: tuple[str, dict], x_title: str = "direction, strongest first") -> dict:
    """The layout of two plots side by side. left, right: the title of a y axis, and what else it is."""
    x = {"title": {"text": x_title, "standoff": 4}, "automargin": True, "zeroline": False}
    y = {"automargin": True, "zeroline": False}
    return {
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "xaxis": x | {"domain": [0, 0.46], "anchor": "y"},
        "xaxis2": x | {"domain": [0.56, 1], "anchor": "y2"},
        "yaxis": y | left[1] | {"anchor": "x", "title": {"text": left[0], "standoff": 6}},
        "yaxis2": y | right[1] | {"anchor": "x2", "title": {"text": right[0], "standoff": 6}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }


def _rank_table(layer: LayerReport) -> np.ndarray:
    """For each expert and each η in whole percent, the rank that STAR keeps. (expert, 101) uint16"""
    rows = []
    for values in layer.curves["singular_values"]:
        rows.append(ranks_keeping(torch.tensor(values, dtype=torch.float64), torch.tensor(GRID)).numpy())
    return np.array(rows).astype("<u2")


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _points(length: int) -> np.ndarray:
    """Which indices of a curve to draw: all of a short one, log-spaced ones of a long one."""
    if length <= _MOST_POINTS:
        return np.arange(length)
    return np.unique(np.round(np.geomspace(1, length, _MOST_POINTS)).astype(int)) - 1


def _short(z: np.ndarray) -> list[list[str]]:
    """Numbers for the cells, with as many decimals as give the largest one two digits."""
    largest = float(np.abs(z).max())
    decimals = min(4, max(0, 1 - math.floor(math.log10(largest)))) if largest else 0
    return [[f"{number:.{decimals}f}" for number in row] for row in z]


def _size_of(texts: list[list[str]]) -> int:
    """How large texts may be that stand side by side in the cells of a heatmap."""
    return {5: 9, 6: 8}.get(max(len(text) for row in texts for text in row), 11)


def _u16(table: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(table, dtype="<u2").tobytes()).decode()
