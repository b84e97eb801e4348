"""The sentences under the pictures of the Spectra tab: they follow the method and the fact that is shown.

A plot is named by its axis, as two of them stand side by side on a screen and one above the other on a phone.
"""

from mergelab.markdown import formula, plain
from mergelab.method import METHODS
from mergelab.plots import spectra as plots
from mergelab.report import Report

LOOK_JOINT = (
    "All experts get one basis. **Joint singular value:** its strength, direction by direction; what is right of a "
    "dotted line is cut. **Share of the direction:** who owns each one. A stripe of one colour would belong to one "
    "expert alone, whom nobody contradicts."
)
FORMULA = r"""
For expert $i$ the **task vector** of one weight matrix is $\tau_i = W_i - W_0 = U S V^\top$, with singular values
$\sigma_1 \ge \sigma_2 \ge \dots$ **STAR** keeps the fewest directions $r$ that hold $\eta$ % of their sum, and scales
them back up:

$$ r = \min\Big\{ r : \sum_{k \le r} \sigma_k \ge \tfrac{\eta}{100} \sum_k \sigma_k \Big\}, \qquad
\tau_i' = \frac{\sum_k \sigma_k}{\sum_{k \le r} \sigma_k}\, U_r S_r V_r^\top, \qquad
W = W_0 + \frac1T \sum_i w_i\, \tau_i' $$
"""


def about(report: Report) -> str:
    """What the method of an analysis does, with its equations."""
    method = METHODS[report.recipe["merge_method"]]
    if method.name == "star":
        return FORMULA
    source = f" (arXiv [{method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    lead = f"For expert i the **task vector** of one weight matrix is {formula('τ_i = W_i − W_0')}."
    summary, equations, *rest = map(formula, method.doc.split("\n\n"))
    steps = "\n".join(f"- {step}" for step in equations.split("; "))
    parts = [lead, f"**{method.title}**{source}: {summary}", steps]
    return "\n\n".join([*parts, *(f"<small>{paragraph}</small>" for paragraph in rest)])


def look_joint(report: Report, module: str) -> str:
    """What the joint basis of one module shows: who owns most of a direction."""
    shares = plots.layer_named(report, module).curves.get("ownership", ()) if report.decomposed else ()
    most = [max(direction) for direction in zip(*shares)]
    if not most:
        return LOOK_JOINT
    share, owner = max((value, name) for name, values in zip(report.experts, shares) for value in values)
    return (
        f"{LOOK_JOINT} Here the strongest owner has {sum(most) / len(most):.0%} of a direction on average, and at most "
        f"{share:.0%} ({plain(owner)}); equal shares would be {1 / len(shares):.0%}."
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
    if fact == plots.LIVE and plots.follows_eta(report, fact):
        return (
            "Number, where there is room: directions kept; colour: their share of all that the matrix has, from none "
            "to the largest share that is drawn. Look for columns that stand out: which kind of matrix needs many "
            "directions, which few?"
        )
    if plots.is_even(report, fact):
        return f"Number and colour: {fact}. It is nearly the same everywhere: no column stands out."
    return f"Number and colour: {fact}. Look for columns that stand out: which kind of matrix is it, and which layer?"


def look_spectra(cuts: bool, rescales: bool = True) -> str:
    """What one module's two plots show. cuts: whether they say where η cuts; rescales: whether what stays is scaled."""
    said = (
        "**Singular value σ:** the strength of each direction of the change; a steep fall means that few matter. "
        "**Share of the nuclear norm:** how they add up"
    )
    if not cuts:
        return (
            f"{said}; a curve that rises fast means that few directions make up most of the change. What is right of a "
            "dotted line, if there is one, the method leaves out."
        )
    rest = "the rest is scaled up" if rescales else "the rest stays as it is, as rescale is off"
    return (
        f"{said}. The dotted lines are where η cuts (the level dashed one is η itself); everything right of "
        f"them goes, and {rest}. The grey dashed curve is the merge at the η it was analysed with."
    )
