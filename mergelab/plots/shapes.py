"""Numbers -> pictures of general shapes, as plain dicts: matrices, curves, bars.

What a picture means is said by whoever draws it: the lessons, a report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mergelab.plots.parts import (
    COLOURS,
    DIVERGING,
    MERGED_COLOUR,
    NUCLEAR,
    SIGMA,
    Figure,
    band,
    colorbar,
    margin,
    one_plot,
    paired_curves,
    strengths,
    titled,
    two_plots,
)  # fmt: skip

Curves = Mapping[str, Sequence[float]]


def matrices(named: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Matrices side by side in one scale of colours, white at zero."""
    reach = max(abs(value) for rows in named.values() for row in rows for value in row)
    traces, layout, notes = [], {"margin": margin(top=34)}, []
    for i, (name, rows) in enumerate(named.items()):
        end, width = "" if i == 0 else str(i + 1), 1 / len(named)
        traces.append(
            {
                "type": "heatmap",
                "name": name,
                "z": [[float(f"{value:.4g}") for value in row] for row in rows],
                "xaxis": f"x{end}",
                "yaxis": f"y{end}",
                "zmin": -reach,
                "zmax": reach,
                "colorscale": DIVERGING,
                "showscale": False,
                "hovertemplate": f"{name}<br>row %{{y}}, column %{{x}}: %{{z:.3g}}<extra></extra>",
            }
        )
        domain = [i * width + 0.01, (i + 1) * width - 0.01]
        bare = {"showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False, "fixedrange": True}
        layout[f"xaxis{end}"] = bare | {"domain": domain, "constrain": "domain"}
        layout[f"yaxis{end}"] = bare | {"autorange": "reversed", "scaleanchor": f"x{end}", "constrain": "domain"}
        layout[f"yaxis{end}"] |= {"constraintoward": "top", "anchor": f"x{end}"}
        layout[f"xaxis{end}"] |= {"anchor": f"y{end}"}
        notes.append(_heading(name, sum(domain) / 2))
    layout |= {"annotations": notes, "meta": {"half": True, "alt": f"Matrices as colours: {', '.join(named)}."}}
    return {"data": traces, "layout": layout}


def _heading(text: str, x: float) -> dict[str, Any]:
    place = {"xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom", "y": 1.01}
    return {"text": text, "x": x, "showarrow": False, **place}


def spectra_of(named: Curves) -> Figure:
    """Left: singular values of several matrices. Right: how each one's sum builds up."""
    traces: list[dict] = []
    for colour, (name, values) in zip((*COLOURS[:3], MERGED_COLOUR), named.items()):
        traces += paired_curves(name, values, {"color": colour, "width": 2})
    layout = two_plots((SIGMA, strengths(*named.values())), NUCLEAR)
    layout["meta"] = {"pair": True, "alt": f"Singular values and their running sum: {', '.join(named)}."}
    return {"data": traces, "layout": layout}


def curves(
    x: Sequence[float], named: Curves, titles: tuple[str, str], percent: bool = True, level: tuple | None = None
) -> Figure:
    """Curves over one axis. titles: of x and y; level: (name, value, low, high) of a line with its interval."""
    across = {} if percent else {"rangemode": "tozero"}
    traces = _level(x, *level) if level else []
    traces += [_curve(name, x, y, i, percent) for i, (name, y) in enumerate(named.items())]
    layout = _layout(titles) | {"meta": {"half": True, "alt": f"{titles[1]} over {titles[0]}: {', '.join(named)}."}}
    layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"} if percent else across
    return {"data": traces, "layout": layout}


def two_of_curves(x: Sequence[float], left: tuple[str, Curves], right: tuple[str, Curves], x_title: str) -> Figure:
    """Two plots over one axis. left, right: the title of y, and the curves; all of them shares."""
    traces = [_curve(name, x, y, i, True) for i, (name, y) in enumerate(left[1].items())]
    beside = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}
    traces += [_curve(name, x, y, i, True) | beside for i, (name, y) in enumerate(right[1].items())]
    share = {"tickformat": ".0%", "rangemode": "tozero"}
    layout = two_plots((left[0], dict(share)), (right[0], dict(share)), x_title)
    layout["meta"] = {"pair": True, "alt": f"{left[0]} and {right[0]} over {x_title}: {', '.join(left[1])}."}
    return {"data": traces, "layout": layout}


def bars(
    labels: Sequence[str],
    named: Curves,
    title: str,
    written: bool = True,
    digits: int = 0,
    shades: Sequence[str] = COLOURS,
) -> Figure:
    """Groups of bars, all of them shares. labels: of the groups; named: a bar in each group; digits: of percents."""
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": list(labels),
            "y": [round(float(value), 5) for value in y],
            "marker": {"color": shades[i % len(shades)]},
            "hovertemplate": f"%{{x}}, {name}: %{{y:.1%}}<extra></extra>",
            **({"text": [f"{value:.{digits}%}" for value in y]} if written else {}),
            "textposition": "outside",
            "cliponaxis": False,
        }
        for i, (name, y) in enumerate(named.items())
    ]
    layout = _layout(("", title)) | {"barmode": "group", "showlegend": len(named) > 1}
    layout["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    layout["xaxis"] |= {"type": "category", "title": {"text": ""}}
    said = [", ".join(f"{name} {y[i]:.1%}" for name, y in named.items()) for i in range(len(labels))]
    layout["meta"] = {"half": True, "alt": "; ".join(f"{label}: {numbers}" for label, numbers in zip(labels, said))}
    return {"data": traces, "layout": layout}


def square(labels: Sequence[str], z: Sequence[Sequence[float]], title: str) -> Figure:
    """One number for each pair, written into its cell; the diagonal is left out."""
    shown = [[None if i == j else round(float(v), 4) for j, v in enumerate(row)] for i, row in enumerate(z)]
    trace = {
        "type": "heatmap",
        "x": list(labels),
        "y": list(labels),
        "z": shown,
        "zmin": 0,
        "colorscale": "Viridis",
        "colorbar": colorbar(),
        "text": [["" if v is None else f"{v:.2f}" for v in row] for row in shown],
        "texttemplate": "%{text}",
        "hovertemplate": f"%{{y}} and %{{x}}: %{{z:.3f}}<extra>{title}</extra>",
    }
    layout = _layout(("", ""))
    layout["xaxis"] |= {"showgrid": False, "type": "category", "title": {"text": ""}}
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "type": "category", "title": {"text": ""}}
    layout["meta"] = {"half": True, "alt": f"Heatmap of {title} between {', '.join(labels)}."}
    return {"data": [trace], "layout": layout}


def _curve(name: str, x: Sequence[float], y: Sequence[float], i: int, percent: bool) -> dict[str, Any]:
    shown = "%{y:.1%}" if percent else "%{y:.3g}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 16 else "lines",
        "name": name,
        "legendgroup": name,
        "x": [float(value) for value in x],
        "y": [round(float(value), 5) for value in y],
        "line": {"color": COLOURS[i % len(COLOURS)], "width": 2.5, "dash": ("solid", "dash", "dot", "dashdot")[i % 4]},
        "marker": {"size": 6},
        "hovertemplate": f"{name}<br>%{{x:.4g}}: {shown}<extra></extra>",
    }


def _level(x: Sequence[float], name: str, value: float, low: float, high: float) -> list[dict[str, Any]]:
    ends = [float(min(x)), float(max(x))]
    dashed = {"color": MERGED_COLOUR, "width": 2, "dash": "dash"}
    line = {"type": "scatter", "mode": "lines", "x": ends, "y": [value, value], "line": dashed, "hoverinfo": "skip"}
    return [*band(name, ends, [low, low], [high, high]), line | {"name": name}]


def _layout(titles: tuple[str, str]) -> dict[str, Any]:
    still = {"fixedrange": True}
    return one_plot(still | titled(titles[0]), still | titled(titles[1], 6))
