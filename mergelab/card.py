"""The model card of a merged model: where it comes from, how it was made, what was left out."""

from pathlib import Path

import yaml

from mergelab.method import MergeMethod, step_named
from mergelab.recipe import Recipe
from mergelab.report import Report


def model_card(recipe: Recipe, method: MergeMethod, report: Report, base: Path) -> str:
    """README.md with the Hub's front matter. base: the base's folder, whose licence is handed on."""
    front = {
        "base_model": [_shown(recipe.base), *(_shown(expert.source) for expert in recipe.experts)],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "mergelab", method.name],
    }
    front |= {"license": licence} if (licence := _licence(base)) else {}
    steps = "".join(f" After it {_cited(step)}" for step in map(step_named, recipe.then))
    experts = "\n".join(f"- `{_shown(e.source)}`, weight {e.weight:g}" for e in recipe.experts)
    left_out = "\n".join(f"- `{name}`: {why}" for name, why in report.skipped.items()) or "Nothing."
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# A merge of {len(recipe.experts)} experts by {method.title}

Made with mergelab. Method: {_cited(method)}{steps}

Base: `{_shown(recipe.base)}`. Experts:

{experts}

## Recipe

```yaml
{recipe.to_yaml()}```

## Left out

{left_out}
"""


def _cited(method: MergeMethod) -> str:
    paper = f" ([arXiv {method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    return f"**{method.title}**{paper}: {method.summary}"


def _shown(source: str) -> str:
    """A source as the Hub's front matter takes it: of a path only the last part."""
    return "+".join(Path(part).name if part.startswith(("/", "~", ".")) else part for part in source.split("+"))


def _licence(base: Path) -> str:
    """The licence in the front matter of the base's own card; empty if it has none."""
    try:
        _, front, _ = (base / "README.md").read_text(encoding="utf-8").split("---", 2)
        licence = (yaml.safe_load(front) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError, AttributeError):
        return ""
    return licence if isinstance(licence, str) else ""
