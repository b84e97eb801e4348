"""A report as one HTML page that needs nothing else: recipe, tables and live figures; it opens from a disk and prints.

The figures are drawn by what draws them on the page (panel.js), from their data; η moves them there, too.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mergelab.assets import ASSETS
from mergelab.plots.parts import COLOURS, PALE, Figure, short_name
from mergelab.plots.shapes import bars
from mergelab.plots.spectra import cut_at, fact_heatmap, joint_space, spectra
from mergelab.recipes.recipe import Recipe
from mergelab.recipes.varying import in_words
from mergelab.report import FACTS, Report
from mergelab.words import counted

_SCRIPTS = ("vendor/plotly-cartesian.min.js", "panel.js", "numbers.js", "document.js")
_STYLES = ("page.css", "document.css")
_MOST_FACTS, _MOST_MODULES = 5, 8  # that are drawn; the table has them all


def document(report: Report, by: str = "") -> str:
    """The page as text: about 1.6 MB, nearly all of it plotly.js. by: the method's title, if that is known."""
    recipe, eta = Recipe.from_dict(report.recipe), cut_at(report)
    title = f"A merge of {counted(len(report.experts), 'expert')} by {by or recipe.method}"
    parts = [f"<h1>{_text(title)}</h1>", _list(_facts(recipe, report)), *_remarks(report)]
    if report.scores:
        parts.append(_section("Scores", _about_scores(eta), [("scores", _scores(report))]))
    if report.decomposed:
        parts += _pictures(report, eta)
        parts.append(f"<details><summary>All facts of all modules</summary>{_table(*report.table())}</details>")
    parts.append(f"<h2>Recipe</h2><pre>{_text(recipe.to_yaml())}</pre>")
    parts.append(f"<h2>Made with</h2>{_list(report.versions)}")
    return _page(title, "\n".join(parts), eta)


def _pictures(report: Report, eta: float | None) -> list[str]:
    heats = [
        _section(fact.capitalize(), FACTS.get(fact, fact) + ".", [(f"heat-{i}", fact_heatmap(report, fact, eta or 40))])
        for i, fact in enumerate(report.facts[:_MOST_FACTS])
    ]
    about = "Left: the strength of each direction of the change. Right: how they add up. One module of each kind."
    figures: list[tuple[str, Figure]] = []
    for name in _one_of_each_kind([layer.name for layer in report.decomposed]):
        figures.append((f"{short_name(name)} spectra".replace(" ", "-"), spectra(report, name, eta)))
        if (joint := joint_space(report, name))["data"]:
            figures.append((f"{short_name(name)} joint".replace(" ", "-"), joint))
    slider = '<label class="eta">η <input type="range" min="1" max="100"> <output></output> %</label>' if eta else ""
    live = [f'{slider}<p id="readout" class="ml-readout"></p>'] if eta else []
    return [*live, *heats, _section("Spectra", about, figures)]


def _one_of_each_kind(names: Sequence[str]) -> list[str]:
    """Of every kind of module the one in the middle of the model."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return [same[len(same) // 2] for same in kinds.values()][:_MOST_MODULES]


def _facts(recipe: Recipe, report: Report) -> dict[str, str]:
    files = [f"{name}: {digest}" for name, digest in report.sha256.items()]
    return {
        "base": recipe.base,
        "experts": ", ".join(expert.source for expert in recipe.experts),
        "settings": in_words(recipe.settings) or "none",
        "tensors": f"{len(report.layers)}, of which {len(report.decomposed)} are decomposed",
        **({"sha256": "; ".join(files)} if files else {}),
    }


def _remarks(report: Report) -> Iterable[str]:
    said = [*report.notes, *(f"not merged: {name}: {why}" for name, why in report.skipped.items())]
    if said:
        yield f"<ul>{''.join(f'<li>{_text(one)}</li>' for one in said)}</ul>"


def _about_scores(eta: float | None) -> str:
    made = f" Of the merge as it was made, at η = {eta:g} %: the slider does not move them." if eta else ""
    return f"Exact match on held-out prompts.{made}"


def _scores(report: Report) -> Figure:
    """Its scores as bars; without the repair where some task has none."""
    shades = {"base": PALE, "expert": COLOURS[2], "merged": COLOURS[0], "repaired": COLOURS[4]}
    kept = [who for who in shades if all(who in found for found in report.scores.values())]
    named = {who: [found[who] for found in report.scores.values()] for who in kept}
    labels = list(report.scores)
    if len(labels) > 1:
        labels.append("mean")
        named = {who: [*values, fmean(values)] for who, values in named.items()}
    return bars(labels, named, "exact match", digits=1, shades=[shades[who] for who in kept])


def _section(title: str, about: str, figures: Sequence[tuple[str, Figure]]) -> str:
    drawn = "".join(_figure(key, figure) for key, figure in figures)
    return f"<section><h2>{_text(title)}</h2><p>{_text(about)}</p>{drawn}</section>"


def _figure(key: str, figure: Figure) -> str:
    layout = figure["layout"]
    silent = {
        key: value for key, value in layout["meta"].items() if key not in ("says", "module")
    }  # a section says it here
    if "eta" in silent:
        silent["eta"] = {key: value for key, value in silent["eta"].items() if key != "means"}
    safe = json.dumps(figure | {"layout": layout | {"meta": silent}}, ensure_ascii=False).replace("<", "\\u003c")
    module = layout.get("uirevision")
    caption = f"<figcaption>{_text(module)}</figcaption>" if module else ""
    data = f'<script type="application/json">{safe}</script>'
    return f'<figure data-key="{_text(key)}">{caption}<div class="ml-plot" style="height:300px"></div>{data}</figure>'


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{_text(header)}</th>' for header in headers)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="ml-numbers" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _text(value)


def _list(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(k)}</dt><dd>{_text(v)}</dd>' for k, v in pairs.items())}</dl>"


def _page(title: str, body: str, eta: float | None) -> str:
    styles = "\n".join(_asset(name) for name in _STYLES)
    scripts = "\n".join(f"<script>{_script(name)}</script>" for name in _SCRIPTS)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>
<style>{styles}</style></head>
<body data-eta="{eta or ""}"><main class="ml-document">
{body}
</main>
{scripts}
</body></html>
"""


def _script(name: str) -> str:
    return _asset(name).replace("</script", "<\\/script")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _text(value: Any) -> str:
    return html.escape(str(value))
