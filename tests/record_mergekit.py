"""Writes mergekit.json: what mergekit 0.1.5 makes of small tensors. Run it where that version is installed.

`python tests/record_mergekit.py`; the tests read the numbers and need no mergekit.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from mergekit.merge_methods import merge_tensors

SHAPES = {"matrix": (3, 5), "vector": (7,), "kernel": (2, 1, 2, 4)}
WEIGHTS = [1.0, 0.5, 1.7]
# method -> settings, each list a case. Only what is not random: DARE and DELLA at density 1.
SETTINGS = {
    "slerp": [{"t": 0.3}, {"t": 0.0}],
    "nuslerp": [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}],
    "multislerp": [{}, {"normalize_weights": False}],
    "karcher": [{}, {"max_iter": 2}],
    "model_stock": [{}, {"filter_wise": True}],
    "nearswap": [{"t": 0.0001}, {"t": 0.05}],
    "sce": [{}, {"select_topk": 0.4}],
    "breadcrumbs": [{}, {"density": 0.5, "gamma": 0.1, "lambda": 0.7}, {"density": 0.8, "gamma": 0.4}],
    "breadcrumbs_ties": [{"density": 0.6, "gamma": 0.1}, {"density": 0.6, "rescale": True, "normalize": True}],
    "dare_linear": [{}, {"normalize": True, "lambda": 0.5}],
    "dare_ties": [{}, {"normalize": True}],
    "della": [{}, {"normalize": False}],
    "della_linear": [{}],
    "ties": [{"density": 0.5}, {"density": 0.3, "normalize": False, "lambda": 2.0}],
    "task_arithmetic": [{"lambda": 0.4}],
    "linear": [{}, {"normalize": False}],
}
WEIGHTED = {"ties", "task_arithmetic", "linear", "nuslerp", "multislerp"} | {
    name for name in SETTINGS if name.startswith(("dare", "della", "breadcrumbs"))
}
COUNT = {"slerp": 1, "nearswap": 1, "nuslerp": 2}


def drawn(shape: tuple[int, ...], size: float, seed: int) -> torch.Tensor:
    """Numbers with six decimals, so that the file is the whole truth."""
    values = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rounded(values, 6)


def rounded(values: torch.Tensor, digits: int) -> torch.Tensor:
    """The doubles that so many decimals say."""
    return torch.tensor([round(value, digits) for value in values.flatten().tolist()], dtype=torch.float64).view_as(
        values
    )


def case(method: str, settings: dict, shape: tuple[int, ...], size: float) -> dict:
    """One merge of a base with models whose changes have this size."""
    count = COUNT.get(method, 3)
    base = drawn(shape, 1.0, 0)
    models = [rounded(base + drawn(shape, size, 1 + i), 6) for i in range(count)]
    inputs = models if method == "linear" else [*models, base]
    parameters = dict(settings)
    if method in WEIGHTED:
        parameters["weight"] = {i: WEIGHTS[i] for i in range(count)}
    at = None if method == "linear" else count
    merged = merge_tensors(inputs, method, parameters=parameters, base_index=at)
    weights = WEIGHTS[:count] if method in WEIGHTED else [1.0] * count
    numbers = {
        "base": base.tolist(),
        "models": [model.tolist() for model in models],
        "merged": rounded(merged, 12).tolist(),
    }
    return {"method": method, "settings": settings, "weights": weights} | numbers


def main() -> None:
    cases = [
        case(method, settings, shape, size)
        for method, all_settings in SETTINGS.items()
        for settings in all_settings
        for shape, size in (
            (SHAPES["matrix"], 1.0),
            (SHAPES["matrix"], 0.001),
            (SHAPES["vector"], 0.1),
            (SHAPES["kernel"], 0.1),
        )
    ]
    lines = ",\n".join(json.dumps(entry) for entry in cases)
    where = Path(__file__).with_name("mergekit.json")
    where.write_text(f'{{"mergekit": "{version("mergekit")}", "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
