"""What pictures share: colours, the layouts of one plot and of two, a spectrum beside its running sum. All plain dicts.

Colours of text and grid are left to the page's theme.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#14b8a6", "#ec4899", "#84cc16")
MERGED_COLOUR = "#8b8b95"
PALE = "#9ca3af"  # the base, and what is drawn for comparison
DIVERGING = [[0, "#b91c1c"], [0.25, "#f59e0b"], [0.5, "#e5e7eb"], [0.75, "#60a5fa"], [1, "#1d4ed8"]]
SHARE = {"tickformat": ".0%", "range": [0, 1.02]}  # an axis of shares
SIGMA = "singular value σ"
NUCLEAR = ("share of the nuclear norm", SHARE)
_MOST_POINTS = 160  # of one curve


def colours(count: int) -> list[str]:
    """As many colours, one after another."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def empty(sentence: str) -> Figure:
    """A figure with nothing in it but a sentence that says why."""
    note = {"text": sentence, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    hidden = {"visible": False, "fixedrange": True}
    return {"data": [], "layout": {"annotations": [note], "xaxis": hidden, "yaxis": hidden, "meta": {"alt": sentence}}}


def short_name(module: str) -> str:
    """A tensor's name, short enough for an axis: 'model.layers.3.self_attn.q_proj.weight' -> '3 q'."""
    parts = module.removesuffix(".weight").split(".")
    number = next((part for part in parts if part.isdigit()), "")
    last = ".".join(parts[-2:]) if parts[-1] in ("dense", "kernel") else parts[-1].removesuffix("_proj")
    return f"{number} {last}".strip()


# Layouts ----------------------------------------------------------------------------------------------------


def titled(title: str, standoff: int = 4) -> dict[str, Any]:
    """An axis' title. standoff: pixels between the numbers and it."""
    return {"title": {"text": title, "standoff": standoff}}


def margin(top: int = 8) -> dict[str, int]:
    """Nearly none: axes make room for themselves."""
    return {"l": 8, "r": 8, "t": top, "b": 8}


def legend() -> dict[str, Any]:
    """In one line above the plot."""
    return {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def colorbar() -> dict[str, Any]:
    """A thin one, as high as the plot."""
    return {"thickness": 10, "outlinewidth": 0, "len": 1}


def one_plot(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """The layout of one plot. x, y: what its axes are besides plain."""
    axis = {"automargin": True, "zeroline": False}
    return {"margin": margin(), "xaxis": axis | x, "yaxis": axis | y, "legend": legend(), "hovermode": "closest"}


def strengths(*curves: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """A logarithmic axis for singular values: a tick per decade, or at 1, 2 and 5 where they span less than two."""
    ends = [value for curve in curves if len(curve) for value in (curve[0], curve[-1]) if value > 0]
    wide = not ends or max(ends) > 100 * min(ends)
    return {"type": "log", "exponentformat": "power", "dtick": 1 if wide else "D2"}


def two_plots(
    left: tuple[str, dict[str, Any]], right: tuple[str, dict[str, Any]], x_title: str = "direction, strongest first"
) -> dict[str, Any]:
    """The layout of two plots side by side. left, right: the title of a y axis, and what else it is."""
    x, y = {"automargin": True, "zeroline": False} | titled(x_title), {"automargin": True, "zeroline": False}
    return {
        "margin": margin(),
        "xaxis": x | {"domain": [0, 0.44], "anchor": "y"},
        "xaxis2": x | {"domain": [0.57, 1], "anchor": "y2"},
        "yaxis": y | left[1] | {"anchor": "x"} | titled(left[0], 6),
        "yaxis2": y | right[1] | {"anchor": "x2"} | titled(right[0], 6),
        "legend": legend(),
        "hovermode": "closest",
    }


def categories(**more: Any) -> dict[str, Any]:
    """An axis of names."""
    return {"automargin": True, "showgrid": False, "type": "category", "fixedrange": True, **more}


# Curves -----------------------------------------------------------------------------------------------------


def paired_curves(name: str, values: Sequence[float] | np.ndarray, line: dict[str, Any]) -> list[dict[str, Any]]:
    """A spectrum and its running sum, as two traces that share one legend entry."""
    values = np.asarray(values, dtype=float)
    at = some_of(len(values))
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


def some_of(length: int) -> np.ndarray:
    """Which indices of a curve to draw: all of a short one, log-spaced ones of a long one."""
    if length <= _MOST_POINTS:
        return np.arange(length)
    return np.unique(np.round(np.geomspace(1, length, _MOST_POINTS)).astype(int)) - 1


def band(name: str, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[dict[str, Any]]:
    """What lies between two curves, shaded; not in the legend."""
    edge = {"type": "scatter", "mode": "lines", "x": list(x), "line": {"width": 0}, "showlegend": False}
    edge |= {"hoverinfo": "skip"}
    filled = {"fill": "tonexty", "fillcolor": "rgba(156,163,175,0.2)"}
    ends = [[round(float(value), 5) for value in end] for end in (low, high)]
    return [edge | {"name": f"{name}, low", "y": ends[0]}, edge | filled | {"name": f"{name}, high", "y": ends[1]}]
