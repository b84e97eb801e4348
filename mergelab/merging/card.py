"""The model card of a merged model: where it comes from, how it was made, what was left out."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from mergelab.files.sources import is_folder
from mergelab.markdown import code, fenced, plain
from mergelab.method import MergeMethod, step_named
from mergelab.planning.provenance import front_matter
from mergelab.recipes.recipe import Recipe
from mergelab.recipes.varying import shown
from mergelab.report import Report
from mergelab.words import counted


def model_card(recipe: Recipe, method: MergeMethod, report: Report, folders: Sequence[Path]) -> str:
    """README.md with the Hub's front matter. folders: of the base and of the experts; their licences are compared."""
    front = {
        "base_model": list(
            dict.fromkeys(shown_source(part) for source in _sources(recipe) for part in source.split("+"))
        ),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "mergelab", *["mergekit"] * recipe.runs_in_mergekit, method.name],
    }
    licences = {
        shown_source(s): licence for s, folder in zip(_sources(recipe), folders) if (licence := _licence(folder))
    }
    front |= {"license": _licence(folders[0])} if _licence(folders[0]) else {}
    front |= {"license": "other"} if len({*licences.values()}) > 1 else {}
    steps = "".join(f" After it {_cited(step)}" for step in map(step_named, recipe.then))
    experts = "\n".join(f"- {code(shown_source(e.source))}, weight {plain(shown(e.weight))}" for e in recipe.experts)
    left_out = "\n".join(f"- {code(name)}: {plain(why)}" for name, why in report.skipped.items()) or "Nothing."
    remarks = "".join(f"- {plain(note)}\n" for note in (*report.notes, *_licence_note(licences)))
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# A merge of {counted(len(recipe.experts), "expert")} by {method.title}

Made with mergelab. Method: {_cited(method)}{steps}

Base: {code(shown_source(recipe.base))}. Experts:

{experts}

## Recipe

{fenced(recipe.to_yaml(), "yaml")}

The revisions and hashes of all inputs are in report.json, with the versions of the libraries: the same recipe on the
same inputs gives the same bytes again.

## Left out

{left_out}

## Remarks

{remarks or "None."}
"""


def _sources(recipe: Recipe) -> list[str]:
    return [recipe.base, *(expert.source for expert in recipe.experts)]


def _licence_note(licences: dict[str, str]) -> list[str]:
    said = ", ".join(f"{source}: {licence}" for source, licence in licences.items())
    return [f"The licences differ ({said}). See to it that yours may follow from all."] * (
        len({*licences.values()}) > 1
    )


def _cited(method: MergeMethod) -> str:
    paper = f" ([arXiv {method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    return f"**{method.title}**{paper}: {method.summary}"


def shown_source(source: str) -> str:
    """A source as the Hub's front matter takes it: without its revision, and of a path only the last part."""
    local = [part.startswith(("/", "~", ".")) or is_folder(part) for part in source.split("+")]
    return "+".join(Path(p).name if here else p.partition("@")[0] for p, here in zip(source.split("+"), local))


def _licence(folder: Path) -> str:
    """The licence in the front matter of a model's own card; empty if it has none."""
    licence = front_matter(folder).get("license")
    return licence if isinstance(licence, str) else ""
