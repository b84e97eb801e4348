"""Two merges compared, as pictures: where in the model they differ, and their spectra one over the other."""

from typing import Any

from mergelab.plots.parts import (
    COLOURS,
    SHARE,
    SIGMA,
    Figure,
    categories,
    colorbar,
    empty,
    margin,
    paired_curves,
    short_name,
    strengths,
    two_plots,
)  # fmt: skip
from mergelab.scores.compare import Comparison, Difference

MEASURES = {
    "distance": "how far apart the two changes are, relative to their size: 0 is equal, 1.41 unrelated",
    "cosine": "the cosine of the two changes: 1 is one direction, 0 unrelated",
}


def difference_map(comparison: Comparison, measure: str) -> Figure:
    """A column per layer, a row per kind of tensor; the colour is the measure. customdata: the tensor's name."""
    if measure not in MEASURES:
        measure = "distance"
    shown = [layer for layer in comparison.layers if layer.name in comparison.spectra] or list(comparison.layers)
    kinds = list(dict.fromkeys(layer.place[0] for layer in shown))
    depths = sorted({layer.place[1] for layer in shown}, key=lambda number: (number != "", int(number or 0)))
    at = {layer.place: layer for layer in shown}
    cells = [[at.get((kind, depth)) for depth in depths] for kind in kinds]
    z = [[None if cell is None else round(getattr(cell, measure), 4) for cell in row] for row in cells]
    trace = {
        "type": "heatmap",
        "x": [f"layer {depth}" if depth else "outside" for depth in depths],
        "y": _labels(kinds),
        "z": z,
        "customdata": [["" if cell is None else cell.name for cell in row] for row in cells],
        "hovertemplate": f"%{{customdata}}<br>{measure} %{{z:.3f}}<extra></extra>",
        "hoverongaps": False,
        "colorscale": "Viridis",
        "colorbar": colorbar(),
        **({"texttemplate": "%{z:.2f}", "textfont": {"size": 11}} if len(depths) <= 16 else {}),
    }
    layout = {"margin": margin(), "xaxis": categories(), "yaxis": categories(autorange="reversed")}
    layout["meta"] = {"alt": _map_alt(comparison, shown, measure)}
    return {"data": [trace], "layout": layout}


def _labels(kinds: list[str]) -> list[str]:
    """The kinds, short where no two are the same then."""
    short = [short_name(kind) for kind in kinds]
    return [name if short.count(name) == 1 else kind for name, kind in zip(short, kinds)]


def _map_alt(comparison: Comparison, shown: list[Difference], measure: str) -> str:
    ranked = sorted((getattr(layer, measure), layer.name) for layer in shown)
    (low, least), (high, most) = ranked[0], ranked[-1]
    whole = getattr(comparison.whole, measure)
    return f"{measure} of the two changes: {whole:.2f} in all, from {low:.2f} in {least} to {high:.2f} in {most}."


def two_spectra(comparison: Comparison, name: str) -> Figure:
    """The singular values of both changes of one tensor, and their running sums."""
    if name not in comparison.spectra:
        return empty("Spectra are of matrices that are decomposed. Choose one.")
    traces: list[dict[str, Any]] = []
    for label, colour, dash, values in zip("AB", COLOURS, ("solid", "dash"), comparison.spectra[name]):
        traces += paired_curves(label, values, {"color": colour, "width": 2, "dash": dash})
    layout = two_plots((SIGMA, strengths(*comparison.spectra[name])), ("running share of the sum", SHARE))
    layout["meta"] = {"pair": True, "alt": f"Singular values of the two changes of {name}, and their running sums."}
    return {"data": traces, "layout": layout}
