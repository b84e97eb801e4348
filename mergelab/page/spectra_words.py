"""The sentences under the pictures of the Spectra tab: they follow the method and the fact that is shown.

A plot is named by its axis, as two of them stand side by side on a screen and one above the other on a phone.
"""

from mergelab.plots import spectra as plots
from mergelab.report import Report

LOOK_JOINT = (
    "DRM gives all experts one basis. **Joint singular value:** its strength, direction by direction. **Share of the "
    "direction:** who owns each one. A stripe of one colour belongs to one expert alone: nobody contradicts it there."
)


def look_heat(report: Report, fact: str) -> str:
    """What a cell of the heatmap is, and what to look for."""
    if not report.decomposed:
        return ""
    fact = fact if fact in report.facts else report.facts[0]
    rows = "a row is an expert" if isinstance(report.decomposed[0].facts[fact], tuple) else "its one row is for all"
    return (
        f"A column is a weight matrix, the first layer on the left; {rows}. {_cell(report, fact)} "
        "**Click a cell** to open that module below."
    )


def _cell(report: Report, fact: str) -> str:
    if plots.follows_eta(report, fact):
        return (
            "Number: directions kept; colour: their share of all that the matrix has. Look for columns that stand out: "
            "which kind of matrix needs many directions, which few?"
        )
    if plots.is_even(report, fact):
        return f"Number and colour: {fact}. It is nearly the same everywhere: no column stands out."
    return f"Number and colour: {fact}. Look for columns that stand out: which kind of matrix is it, and which layer?"


def look_spectra(cuts: bool) -> str:
    """What one module's two plots show. cuts: whether they say where η cuts."""
    said = (
        "**Singular value σ:** the strength of each direction of the change; a steep fall means that few matter. "
        "**Share of the nuclear norm:** how they add up"
    )
    if not cuts:
        return f"{said}; a curve that rises fast means that few directions make up most of the change."
    return f"{said}. The dotted lines are where η cuts; everything to their right goes, and the rest is scaled up."
