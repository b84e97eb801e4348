"""The model card of a merged model: where it comes from, how it was made, what was left out."""

from pathlib import Path

import yaml

from mergelab.method import MergeMethod
from mergelab.provenance import front_matter
from mergelab.recipe import Recipe
from mergelab.report import Report
from mergelab.varying import shown


def model_card(recipe: Recipe, method: MergeMethod, report: Report, base: Path) -> str:
    """README.md with the Hub's front matter. base: the base's folder, whose licence is handed on."""
    front = {
        "base_model": [_shown(recipe.base), *(_shown(expert.source) for expert in recipe.experts)],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "mergelab", method.name],
    }
    front |= {"license": licence} if (licence := _licence(base)) else {}
    paper = f" ([arXiv {method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    experts = "\n".join(f"- `{_shown(e.source)}`, weight {shown(e.weight)}" for e in recipe.experts)
    left_out = "\n".join(f"- `{name}`: {why}" for name, why in report.skipped.items()) or "Nothing."
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# A merge of {len(recipe.experts)} experts by {method.title}

Made with mergelab. Method: **{method.title}**{paper}: {method.summary}

Base: `{_shown(recipe.base)}`. Experts:

{experts}

## Recipe

```yaml
{recipe.to_yaml()}```

## Left out

{left_out}
"""


def _shown(source: str) -> str:
    """A source as the Hub's front matter takes it: of a path only the last part."""
    return "+".join(Path(part).name if part.startswith(("/", "~", ".")) else part for part in source.split("+"))


def _licence(base: Path) -> str:
    """The licence in the front matter of the base's own card; empty if it has none."""
    licence = front_matter(base).get("license")
    return licence if isinstance(licence, str) else ""
