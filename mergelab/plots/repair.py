"""RepairReport -> plotly figure, as plain dicts: what a merge does to activations, and a repair.

One function per picture. A task keeps its colour in all of them; a stage of the story keeps its dash or its shade.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from mergelab.maths.interval import wilson
from mergelab.plots.parts import (
    COLOURS,
    DIVERGING,
    MERGED_COLOUR,
    PALE,
    Figure,
    categories,
    colorbar,
    colours,
    empty,
    one_plot,
    titled,
    two_plots,
)  # fmt: skip
from mergelab.report import Channels, RepairReport

PLAIN, MERGED, ALIGNED, REPAIRED = "plain average", "merged", "aligned", "repaired"
_DASHES = {PLAIN: "dot", MERGED: "dash", ALIGNED: "dash", REPAIRED: "solid"}
_SHADES = {  # what bars are drawn of, in this order, in other colours than the tasks'; the controls are pale
    PLAIN: "#d8b4fe",
    "merged": "#a855f7",
    REPAIRED: "#14b8a6",
    "expert": "#64748b",
    f"{PLAIN}, {REPAIRED}": "#99f6e4",
    f"base, {REPAIRED}": PALE,
    f"without the expert, {REPAIRED}": "#fca5a5",
}
_SYMBOLS = {"merged": "circle-open", "repaired": "circle"}
_OCTAVES = {"dtick": math.log10(2), "tickformat": ".2~r"}  # of a log axis: a tick at each factor of two
_MOST_LABELS = 40  # of one axis
_FLOOR = -10.0  # of log2: a ratio of a thousandth is as good as none


def variance_ratio(
    reports: Sequence[RepairReport],
    plain: Mapping[str, Sequence[Channels]],
    theory: Sequence[float] = (),
    merged: str = MERGED,
) -> Figure:
    """log2 of the variance that is left, site by site: a colour per task, a dash per stage; 0 is the expert's own.

    plain: task -> the channels of the merge before alignment. theory: (1+(N-1)ρ)/N at each site, ρ measured there.
    merged: what the merge that is repaired is called.
    """
    if not reports or not reports[0].channels:
        return empty("The variance appears here, layer by layer, after a run.")
    names, traces = [one.site for one in reports[0].channels], []
    for colour, report in zip(colours(len(reports)), reports):
        stages = {PLAIN: (plain.get(report.task, ()), "merged"), merged: (report.channels, "merged")}
        stages[REPAIRED] = report.channels, "repaired"
        for stage, (channels, whose) in stages.items():
            if channels and getattr(channels[0], f"{whose}_var"):
                traces.append(_curve(f"{report.task}: {stage}", names, channels, whose, colour, _DASHES[stage]))
        traces.append(_entry(report.task, {"color": colour, "width": 5}))
    for stage in (PLAIN, merged, REPAIRED)[not plain :]:
        traces.append(_entry(stage, {"color": MERGED_COLOUR, "width": 2, "dash": _DASHES[stage]}))
    if theory:
        traces.append(_theory(names, theory))
    alt = "; ".join(_told(report, plain.get(report.task, ()), merged) for report in reports)
    layout = _layout("log₂(variance / expert's)")
    layout["meta"] = {
        "half": True,
        "across": "site",
        "alt": f"Variance from {site_label(names[0])} to {site_label(names[-1])}: {alt}",
    }
    layout["xaxis"] |= _ticks([site_label(name) for name in names]) | {"tickangle": -50}
    layout["shapes"] = [_level(0)]
    return {"data": traces, "layout": layout}


def _theory(names: Sequence[str], theory: Sequence[float]) -> dict:
    line = {"color": MERGED_COLOUR, "width": 1, "dash": "longdash"}
    y = [round(math.log2(max(share, 2.0**_FLOOR)), 4) for share in theory]
    hover = "%{customdata}<br>(1+(N−1)ρ)/N = 2^%{y:.2f}<extra></extra>"
    curve = _line("theory: (1+(N−1)ρ)/N", range(len(names)), y, line)
    return curve | {"mode": "lines", "customdata": list(names), "hovertemplate": hover}


def _entry(name: str, line: dict) -> dict:
    """A line in the legend alone."""
    return _line(name, [None], [None], line) | {"mode": "lines", "hoverinfo": "skip"}


def _curve(name: str, names: list[str], channels: Sequence[Channels], whose: str, colour: str, dash: str) -> dict:
    at = {one.site: max(one.log2_ratio(whose), _FLOOR) for one in channels}
    y = [round(at[site], 4) if site in at else None for site in names]
    line = {"color": colour, "width": 2.5 if dash == "solid" else 2, "dash": dash}
    hover = f"%{{customdata}}<br>{name}: 2^%{{y:.2f}} of the expert's variance<extra></extra>"
    curve = _line(name, range(len(names)), y, line)
    return curve | {"customdata": names, "hovertemplate": hover, "showlegend": False}


def _line(name: str, x: Sequence, y: Sequence, line: dict) -> dict:
    style = {"type": "scatter", "mode": "lines+markers", "marker": {"size": 4}}
    return style | {"name": name, "x": list(x), "y": list(y), "line": line}


def _told(report: RepairReport, plain: Sequence[Channels], merged: str) -> str:
    parts = [f"{PLAIN} ends at {plain[-1].ratio():.2g} of the expert's"] if plain else []
    if report.channels:
        parts.append(f"{merged} at {report.channels[-1].ratio():.2g}")
        parts += (
            [f"repaired at {report.channels[-1].ratio('repaired'):.2g}"] if report.channels[-1].repaired_var else []
        )
    return f"{report.task}: {', '.join(parts)}"


def ratio_heatmap(reports: Sequence[RepairReport], whose: str = "merged") -> Figure:
    """log2 of the variance ratio, merged or repaired: a column per site, a row per task. A click names the site."""
    if not reports or not reports[0].channels:
        return empty("A column per site and a row per task appear here after a run.")
    names = [one.site for one in reports[0].channels]
    z = [[round(max(one.log2_ratio(whose), _FLOOR), 4) for one in report.channels] for report in reports]
    reach = max(1.0, max(abs(value) for row in z for value in row))
    trace = {
        "type": "heatmap",
        "x": list(range(len(names))),
        "y": [report.task for report in reports],
        "z": z,
        "zmin": -reach,
        "zmax": reach,
        "customdata": [names] * len(reports),
        "hovertemplate": "%{customdata}<br>%{y}: 2^%{z:.2f} of the expert's variance<extra></extra>",
        "colorscale": DIVERGING,
        "colorbar": colorbar(),
    }
    if len(names) <= _MOST_LABELS:
        text = [[f"{value:.1f}" for value in row] for row in z]
        trace |= {"text": text, "texttemplate": "%{text}"}
    layout = _layout("")
    layout["yaxis"] = categories(autorange="reversed")
    layout["xaxis"] |= _ticks([site_label(name) for name in names]) | {"showgrid": False, "tickangle": -60}
    worst = min((value, report.task, site) for report, row in zip(reports, z) for value, site in zip(row, names))
    alt = f"Heatmap of log2 variance ratios, {whose}: {len(names)} sites, {len(reports)} tasks; lowest {worst[0]:.2f} "
    layout["meta"] = {"half": True, "across": "site", "alt": f"{alt}({worst[1]}, {worst[2]})."}
    return {"data": [trace], "layout": layout}


def deviations(reports: Sequence[RepairReport], site: str) -> Figure:
    """Each channel of one site: σ of the merged (hollow) and of the repaired model (full) over σ of the expert."""
    found = [(report, next((c for c in report.channels if c.site == site), None)) for report in reports]
    found = [(report, one) for report, one in found if one is not None]
    if not found:
        return empty("Each channel of a site appears here: click a column of the heatmap.")
    traces = []
    for (report, one), colour in zip(found, colours(len(found))):
        for whose, symbol in _SYMBOLS.items():
            if y := getattr(one, f"{whose}_var"):
                traces.append(_dots(f"{report.task}: {whose}", one.expert_var, y, colour, symbol))
    numbers = [v for trace in traces for v in (*trace["x"], *trace["y"]) if v]
    low, high = min(numbers, default=0.1), max(numbers, default=1.0)
    traces += [_entry(report.task, {"color": colour, "width": 5}) for (report, _), colour in zip(found, COLOURS)]
    traces += [_key(whose, symbol) for whose, symbol in _SYMBOLS.items()]
    diagonal = {"color": MERGED_COLOUR, "width": 1, "dash": "longdash"}
    traces.append(_line("as the expert", [low, high], [low, high], diagonal) | {"mode": "lines", "hoverinfo": "skip"})
    layout = _layout("σ here", {"type": "log", **_OCTAVES})
    layout["xaxis"] |= titled("σ in the expert") | {"type": "log", **_OCTAVES, "tickangle": 0}
    told = "; ".join(
        f"{report.task}: {sum(m < e for m, e in zip(one.merged_var, one.expert_var))} of {len(one.expert_var)} below"
        for report, one in found
    )
    layout["meta"] = {"half": True, "alt": f"Deviations of the channels at {site}, merged against expert. {told}."}
    return {"data": traces, "layout": layout}


def _dots(name: str, x: Sequence[float], y: Sequence[float], colour: str, symbol: str) -> dict:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [float(f"{math.sqrt(v):.4g}") for v in x],
        "y": [float(f"{math.sqrt(v):.4g}") for v in y],
        "marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.75},
        "showlegend": False,
        "hovertemplate": f"{name}<br>channel %{{pointNumber}}: expert %{{x:.3g}}, here %{{y:.3g}}<extra></extra>",
    }


def _key(name: str, symbol: str) -> dict:
    """A symbol in the legend alone."""
    marker = {"color": MERGED_COLOUR, "symbol": symbol, "size": 7}
    return {"type": "scatter", "mode": "markers", "name": name, "x": [None], "y": [None], "marker": marker}


def matching(objective: Sequence[float], before: Sequence[float], after: Sequence[float]) -> Figure:
    """Left: what the matching makes large, sweep by sweep. Right: how well channels with the same number agree between
    two experts, before and after they were matched (correlation of their activations)."""
    if not objective and not after and not before:
        return empty("Nothing was matched.")
    x = list(range(len(objective)))
    traces = [_line("objective", x, [float(f"{v:.6g}") for v in objective], {"color": COLOURS[4], "width": 2})]
    traces[0]["hovertemplate"] = "after sweep %{x}: %{y:.4g}<extra></extra>"
    for name, values, colour in (("before", before, COLOURS[1]), ("matched", after, COLOURS[0])):
        if values:
            traces.append(_histogram(f"{name}, mean {fmean(values):.2f}", values, colour))
    layout = two_plots(("agreement that is made large", {}), ("channels", {}), "sweep") | {"barmode": "overlay"}
    layout["xaxis"] |= {"dtick": max(1, len(x) // 10)}
    layout["xaxis2"] |= titled("correlation of two experts' channels")
    told = "; ".join(
        f"mean correlation {name} {fmean(v):.2f}" for name, v in (("before", before), ("after", after)) if v
    )
    layout["meta"] = {"pair": True, "alt": f"Objective over {max(len(objective) - 1, 0)} sweeps; {told}."}
    return {"data": traces, "layout": layout}


def _histogram(name: str, values: Sequence[float], colour: str) -> dict:
    width, counts = 0.05, [0] * 40
    for value in values:
        counts[min(39, max(0, math.floor((value + 1) / width)))] += 1
    x = [round(-1 + width * (i + 0.5), 3) for i in range(40)]
    hover = "%{y} channels at %{x:.2f}<extra></extra>"
    bars = {"type": "bar", "name": name, "x": x, "y": counts, "width": width, "opacity": 0.65}
    return bars | {"xaxis": "x2", "yaxis": "y2", "marker": {"color": colour}, "hovertemplate": hover}


def repaired_bars(
    reports: Sequence[RepairReport], tested: Mapping[str, int] | None = None, merged: str = MERGED
) -> Figure:
    """Accuracy per task at each stage of the story, the controls in pale colours; other scores are for a table.

    tested: task -> how many prompts or pictures, for the 95 % intervals. merged: what the repaired merge is called.
    """
    kinds = [kind for kind in _SHADES if any(kind in report.scores for report in reports)]
    if not kinds:
        return empty("Accuracy before and after appears here for bundled experts, which come with tests.")
    names = {kind: merged if kind == MERGED else kind for kind in kinds}
    traces = [_bars(reports, kind, name, tested or {}) for kind, name in names.items()]
    told = [
        f"{report.task}: " + ", ".join(f"{names[k]} {report.scores[k]:.0%}" for k in kinds if k in report.scores)
        for report in reports
    ]
    layout = _layout("", {"tickformat": ".0%", "range": [0, 1.1], "fixedrange": True})
    layout["xaxis"] |= {"type": "category", "fixedrange": True}
    return {
        "data": traces,
        "layout": layout | {"barmode": "group", "meta": {"half": True, "across": "task", "alt": "; ".join(told)}},
    }


def _bars(reports: Sequence[RepairReport], kind: str, name: str, tested: Mapping[str, int]) -> dict:
    shares = [report.scores.get(kind) for report in reports]
    trace = {
        "type": "bar",
        "name": name,
        "x": [report.task for report in reports],
        "y": shares,
        "marker": {"color": _SHADES[kind]},
        "text": ["" if share is None else f"{100 * share:.0f}" for share in shares],
        "textposition": "inside",
        "insidetextanchor": "start",
        "textangle": 0,
        "hovertemplate": f"%{{x}}, {name}: %{{y:.1%}}<extra></extra>",
    }
    if all(report.task in tested for report in reports):
        ends = [wilson(share or 0.0, tested[report.task]) for share, report in zip(shares, reports)]
        up = [round(high - (share or 0.0), 4) for share, (_, high) in zip(shares, ends)]
        down = [round((share or 0.0) - low, 4) for share, (low, _) in zip(shares, ends)]
        bars = {"symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 2}
        trace["error_y"] = {"type": "data", "color": MERGED_COLOUR, **bars}
    return trace


def site_label(site: str) -> str:
    """A site's name, short enough for an axis: 'model.layers.3.mlp.down_proj|in' -> '3 down in'."""
    module, _, side = site.partition("|")
    words = [part for part in module.split(".") if not part.isdigit()]
    if words[-1] in ("normalization", "dense", "convolution") and len(words) > 1:
        words[-1] = "norm" if words[-2] in ("layer", "layers") else words[-2]
    numbers = ".".join(part for part in module.split(".") if part.isdigit())
    word = (
        words[-1]
        .removesuffix("_proj")
        .replace("post_attention_layernorm", "norm 2")
        .replace("input_layernorm", "norm 1")
    )
    return " ".join(part for part in (numbers, word, "in" if side == "in" else "") if part)


def _ticks(labels: Sequence[str]) -> dict:
    step = -(-len(labels) // _MOST_LABELS)
    at = list(range(0, len(labels), step))
    return {"tickmode": "array", "tickvals": at, "ticktext": [labels[i] for i in at]}


def _layout(title: str, axis: dict | None = None) -> dict:
    return one_plot({}, (axis or {}) | (titled(title, 6) if title else {}))


def _level(y: float) -> dict:
    return {
        "type": "line",
        "xref": "x domain",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"color": MERGED_COLOUR, "width": 1},
    }
