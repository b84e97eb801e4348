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
from mergelab.plots.parts import (
    MERGED_COLOUR,
    NUCLEAR,
    SHARE,
    SIGMA,
    Figure,
    categories,
    colorbar,
    colours,
    empty,
    margin,
    paired_curves,
    short_name,
    some_of,
    strengths,
    two_plots,
)  # fmt: skip
from mergelab.recipes.varying import depths, elsewhere, value_at
from mergelab.report import FACTS, LayerReport, Report
from mergelab.words import counted

LIVE = "rank kept"  # the fact that the page opens with
OF_THE_MERGE = ("merged change", "cosine to the average", "merged rounding error")  # they are of one η
GRID = np.arange(101) / 100  # shares of the nuclear norm: η in whole percent
EVEN, LEAST_RANGE = 0.03, 0.15  # shares of the largest number: what looks even, and how far the colours reach at least
_MOST_LABELS = 36  # of one axis


def fact_heatmap(report: Report, fact: str, eta: float) -> Figure:
    """One number per module and expert: the modules in the model's order from left to right, a row per expert.

    What STAR decides by η alone follows it in the browser; what was measured of a merge says of which one it was.
    """
    layers = report.decomposed
    if not layers:
        return empty("No tensor of this model is decomposed.")
    fact = fact if fact in report.facts else report.facts[0]  # a name may come from a browser
    if follows_eta(report, fact):
        return _rank_heatmap(report, eta) if fact == LIVE else _following_heatmap(report, fact, eta)
    z = _cells(report, fact)
    rows = report.experts if len(z) == len(report.experts) else ("all experts",)
    figure = _heat(layers, rows, z, _short(z), f"{fact}: %{{z:.4g}}")
    figure["data"][0] |= dict(zip(("zmin", "zmax"), _colour_range(z)))
    alt = f"Heatmap of {fact}: {len(layers)} modules from left to right, {len(rows)} rows."
    figure["layout"]["meta"] = {"alt": alt, "across": "module", "says": f"{fact}: {FACTS.get(fact, fact)}."}
    if fact in OF_THE_MERGE and (measured := cut_at(report)) is not None:
        figure["layout"]["meta"]["measured"] = measured
    return figure


def cut_at(report: Report) -> float | None:
    """STAR's η where no filter is: where the pictures cut; None under another method."""
    if report.recipe.get("merge_method") != "star":
        return None
    eta = elsewhere(report.recipe["parameters"]["eta"])
    return eta[0] if isinstance(eta, list) else eta


def follows_eta(report: Report, fact: str) -> bool:
    """Whether a fact's heatmap follows η in the browser: other methods than STAR keep ranks of their own."""
    return (fact == LIVE or fact in _BY_RANK) and report.recipe.get("merge_method") == "star"


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
    layers, table, held = report.decomposed, _ranks(report), own_etas(report)
    full = np.array([layer.full_rank for layer in layers])
    ranks = _at(table, held, eta)
    z = ranks / full
    figure = _heat(layers, report.experts, z, ranks.astype(str).tolist(), "directions kept: %{text} (%{z:.0%})")
    figure["data"][0] |= {"zmin": 0, "zmax": float(z.max()) or 1.0}  # the slider moves it with what is drawn
    figure["data"][0]["colorbar"] |= {"tickformat": ".0%", "title": {"text": "share kept", "side": "right"}}
    size = f"{counted(len(layers), 'module')}, {counted(len(report.experts), 'expert')}"
    follow = {"kind": "heat", "shape": table.shape, "table": _u16(table), "full": full.tolist(), "held": held}
    follow["gain"] = _mean_gains(layers, table, held) if rescales(report) else None
    alt = f"Heatmap of the share of singular directions kept: {size}."
    figure["layout"]["meta"] = {"alt": alt, "across": "module", "eta": follow}
    return figure


def _following_heatmap(report: Report, fact: str, eta: float) -> Figure:
    """Another fact that η alone decides. The table holds it in steps of a hundredth, or of 1/10000 if it is a share."""
    layers, held, step = report.decomposed, own_etas(report), 0.01 if fact == "gain" else 1e-4
    ranks, low = _ranks(report), 1.0 if fact == "gain" else 0.0
    facts = [[_BY_RANK[fact](layer, i, ranks[i, m]) for m, layer in enumerate(layers)] for i in range(len(ranks))]
    table = np.minimum(np.round(np.array(facts) / step), 65535).astype("<u2")
    if fact == "gain" and not rescales(report):
        table[:] = round(1 / step)
    z = _at(table, held, eta) * step
    figure = _heat(layers, report.experts, z, [[f"{v:.2f}" for v in row] for row in z], f"{fact}: %{{z:.4g}}")
    figure["data"][0] |= {"zmin": low, "zmax": max(float(z.max()), low + 0.01)}
    follow = {"kind": "fact", "shape": table.shape, "table": _u16(table), "held": held, "step": step, "low": low}
    follow |= {"fact": fact, "means": FACTS[fact]}
    alt = f"Heatmap of {fact}: {len(layers)} modules from left to right, {len(report.experts)} rows."
    figure["layout"]["meta"] = {"alt": alt, "across": "module", "eta": follow}
    return figure


def _ranks(report: Report) -> np.ndarray:
    """The rank that STAR keeps at each η in whole percent. (expert, module, 101)"""
    return np.stack([_rank_table(layer) for layer in report.decomposed], axis=1)


def _at(table: np.ndarray, held: Sequence[float | None], eta: float) -> np.ndarray:
    """A table at one η, or at the module's own. (expert, module)"""
    return np.stack([table[:, i, round(eta if own is None else own)] for i, own in enumerate(held)], axis=1)


def _share_kept(layer: LayerReport, expert: int, ranks: np.ndarray) -> np.ndarray:
    return ranks / layer.full_rank


def _gain(layer: LayerReport, expert: int, ranks: np.ndarray) -> np.ndarray:
    return 1 / _share_of_sum(np.array(layer.curves["singular_values"][expert], dtype=float), ranks)


def _energy_kept(layer: LayerReport, expert: int, ranks: np.ndarray) -> np.ndarray:
    return _share_of_sum(np.array(layer.curves["singular_values"][expert], dtype=float) ** 2, ranks)


def _share_of_sum(values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The leading so many values' share of their sum, 1 where there are none. (101,)"""
    if not len(values):
        return np.ones(len(ranks))
    mass = values.cumsum()
    return mass[np.maximum(ranks.astype(int), 1) - 1] / mass[-1]


_BY_RANK = {"rank kept, share": _share_kept, "gain": _gain, "energy kept": _energy_kept}


def rescales(report: Report) -> bool:
    """Whether STAR scales up what it keeps."""
    return bool(elsewhere((report.recipe.get("parameters") or {}).get("rescale", True)))


def _mean_gains(layers: Sequence[LayerReport], table: np.ndarray, held: Sequence[float | None]) -> list[float]:
    """By what STAR scales up what it keeps, on average over modules and experts, for each η in whole percent. (101,)

    table: the ranks that it keeps, (expert, module, 101).
    """
    found = []
    for m, (layer, own) in enumerate(zip(layers, held)):
        for i, values in enumerate(layer.curves["singular_values"]):
            if len(values):
                gains = _gain(layer, i, table[i, m])
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
        "colorbar": colorbar(),
        **({} if crowded else {"texttemplate": "%{text}", "textfont": {"size": _size_of(text)}}),
    }
    axis = {"tickmode": "array", "tickvals": ticks, "ticktext": [short_name(names[i]) for i in ticks], "tickangle": -60}
    x = axis | {"automargin": True, "showgrid": False, "zeroline": False, "fixedrange": True}
    return {"data": [trace], "layout": {"margin": margin(), "xaxis": x, "yaxis": categories(autorange="reversed")}}


def spectra(report: Report, module: str, eta: float | None) -> Figure:
    """Left: one module's singular values, expert by expert, and of the merge. Right: how their sum builds up.

    eta: draws where STAR cuts at that share of the nuclear norm (percent), or at the module's own; None draws no cut.
    """
    layer = layer_named(report, module)
    held = own_etas(report)[report.decomposed.index(layer)] if eta is not None else None
    curves = [np.array(values, dtype=float) for values in layer.curves.get("singular_values", ())]
    traces: list[dict] = []
    for name, colour, values in zip(report.experts, colours(len(curves)), curves):
        traces += paired_curves(name, values, {"color": colour, "width": 2})
    merged = np.array(layer.curves.get("merged_singular_values", ()), dtype=float)
    title = "merged" if eta is None else f"merged at η = {eta if held is None else held:g}"
    traces += paired_curves(title, merged, {"color": MERGED_COLOUR, "width": 2, "dash": "dash"})
    layout = two_plots((SIGMA, strengths(*curves, merged)), NUCLEAR)
    layout["uirevision"] = module
    layout["legend"]["title"] = {"text": f"<b>{short_name(layer.name)}</b>"}
    layout["meta"] = {
        "pair": True,
        "module": layer.name,
        "alt": f"Singular values of {module} for {counted(len(curves), 'expert')}, and their running sum.",
    }
    if eta is not None:
        table = _rank_table(layer)
        followed = {"kind": "cuts", "shape": table.shape, "table": _u16(table), "held": held}
        layout["meta"]["eta"] = followed | {"colours": colours(len(curves))}
    elif isinstance(ranks := layer.facts.get(LIVE), tuple):
        cuts = [
            (rank, colour) for rank, colour, values in zip(ranks, colours(len(curves)), curves) if rank < len(values)
        ]
        layout["shapes"] = [_cut(rank, axis, colour) for rank, colour in cuts for axis in ("", "2")]
    return {"data": traces, "layout": layout}


def _cut(rank: float, axis: str, colour: str) -> dict[str, Any]:
    """A line where the directions end that are kept. axis: of which plot, "" or "2"."""
    place = {"xref": f"x{axis}", "yref": f"y{axis} domain", "x0": rank, "x1": rank, "y0": 0, "y1": 1}
    return place | {"type": "line", "line": {"color": colour, "width": 1.5, "dash": "dot"}}


def joint_space(report: Report, module: str) -> Figure:
    """A module's joint basis (DRM, KnOTS). Left: its spectrum. Right: which expert owns how much of a direction."""
    layer = layer_named(report, module)
    joint = np.array(layer.curves.get("joint_singular_values", ()), dtype=float)
    if not len(joint) or "ownership" not in layer.curves:
        return empty("No directions are owned by experts here. Choose DRM-H or DRM-V, then press Analyse.")
    traces = paired_curves("joint", joint, {"color": MERGED_COLOUR, "width": 2})[:1]
    for name, colour, share in zip(report.experts, colours(len(report.experts)), layer.curves["ownership"]):
        at = some_of(len(share))
        hover = f"direction %{{x}}: {name} has %{{y:.0%}}<extra></extra>"
        area = {"type": "scatter", "mode": "lines", "stackgroup": "owner", "line": {"width": 0, "color": colour}}
        y = np.round(np.array(share)[at], 5).tolist()
        traces.append(
            area | {"name": name, "x": (at + 1).tolist(), "y": y, "xaxis": "x2", "yaxis": "y2", "hovertemplate": hover}
        )
    layout = two_plots(("joint singular value", strengths(joint)), ("share of the direction", SHARE))
    if (kept := layer.facts.get("joint rank", len(joint))) < len(joint):
        layout["shapes"] = [_cut(kept + 0.5, "", MERGED_COLOUR)]
    layout["legend"]["title"] = {"text": f"<b>{short_name(layer.name)}</b>"}
    layout["uirevision"] = module
    layout["meta"] = {
        "pair": True,
        "alt": f"Joint spectrum of {module}, and each expert's share of every joint direction.",
    }
    return {"data": traces, "layout": layout}


def layer_named(report: Report, module: str) -> LayerReport:
    """The decomposed layer of that name; the first one if there is none (a name may come from a browser)."""
    return next((layer for layer in report.decomposed if layer.name == module), report.decomposed[0])


def _rank_table(layer: LayerReport) -> np.ndarray:
    """For each expert and each η in whole percent, the rank that STAR keeps. (expert, 101) uint16"""
    rows = []
    for values in layer.curves["singular_values"]:
        rows.append(ranks_keeping(torch.tensor(values, dtype=torch.float64), torch.tensor(GRID)).numpy())
    return np.array(rows).astype("<u2")


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
