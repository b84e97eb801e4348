"""What each method does to the bundled experts: mean exact match on held-out prompts, as a Markdown table.

`python benchmarks/quality.py` measures everything anew, in a few minutes on two cores. Nothing is tuned on the test
prompts but where a row says "best of".
"""

import tempfile
from pathlib import Path

from mergelab import result
from mergelab.lab.lab import Lab
from mergelab.recipes.recipe import Expert, Recipe

SKILLS = ("french", "german", "english", "spanish", "morse", "reverse", "roman", "sort")
COUNTS = (2, 4, 8)
ETAS = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
ROWS = (
    ("Average", "linear", {}),
    ("Task arithmetic, λ = 1.5/N", "task_arithmetic", {"lambda": 1.5}),
    ("TIES, density 0.2", "ties", {"density": 0.2}),
    ("STAR, η = 40", "star", {"eta": 40}),
    ("STAR, η = 50", "star", {"eta": 50}),
    ("STAR, η = 50, without rescale", "star", {"eta": 50, "rescale": False}),
    ("DRM-H, drop 0.8", "drm_h", {"drop": 0.8}),
    ("DRM-H, drop 0.5", "drm_h", {"drop": 0.5}),
    ("DRM-V, drop 0.8", "drm_v", {"drop": 0.8}),
    ("DRM-V, drop 0.5", "drm_v", {"drop": 0.5}),
    ("TSV-M", "tsv_m", {}),
    ("Iso-C", "iso_c", {}),
    ("Iso-CTS, common 0.8", "iso_cts", {}),
    ("KnOTS with TIES, density 0.2", "knots_ties", {}),
    ("KnOTS with DARE, density 0.5", "knots_dare", {}),
    ("Core space with TIES, density 0.2", "core_space", {}),
    ("SWUDI, keep 0.65", "swudi", {}),
    ("SWUDI, keep 0.85", "swudi", {"keep": 0.85}),
    ("DARE, density 0.5, λ = 1.5/N", "dare_linear", {"density": 0.5, "lambda": 1.5}),
    ("DARE with TIES, density 0.5, λ = 1.5/N", "dare_ties", {"density": 0.5, "lambda": 1.5}),
    ("DELLA, density 0.5", "della", {"density": 0.5}),
    ("Breadcrumbs, density 0.9, λ = 1.5/N", "breadcrumbs", {"density": 0.9, "lambda": 1.5}),
    ("SCE, all entries", "sce", {}),
    ("Consensus, k = 2, α = 0.4", "consensus", {}),
    ("PCB, ratio 0.1", "pcb", {}),
    ("MetaGPT", "metagpt", {}),
    ("Model stock", "model_stock", {}),
    ("Multi-SLERP", "multislerp", {}),
    ("Karcher mean, without the base", "karcher", {"count_base": False}),
    ("Task arithmetic, λ = 1, then SVC", "task_arithmetic", {}, {"svc": {}}),
    ("TSV-M, then SVC", "tsv_m", {}, {"svc": {}}),
)


def means(lab: Lab, method: str, settings: dict, count: int, then: dict | None = None) -> tuple[float, float, float]:
    """Mean exact match over the first `count` skills: of the base, of each skill's own expert, of the merge."""
    settings = settings | ({"lambda": settings["lambda"] / count} if "lambda" in settings else {})
    experts = tuple(Expert(f"numbers/{skill}") for skill in SKILLS[:count])
    run = result(lab.merge(Recipe("numbers/base", experts, method, settings, then=then or {})))
    scores = result(lab.scores(run)).by_task().values()
    return tuple(sum(score[who] for score in scores) / count for who in ("base", "expert", "merged"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        print("| | " + " | ".join(f"{n} experts" for n in COUNTS) + " |\n|---|" + "---|" * len(COUNTS))
        baseline = {n: means(lab, "linear", {}, n) for n in COUNTS}
        print("| base, on these tasks | " + " | ".join(f"{baseline[n][0]:.1%}" for n in COUNTS) + " |")
        print("| each expert, on its own task | " + " | ".join(f"{baseline[n][1]:.1%}" for n in COUNTS) + " |")
        for title, method, settings, *then in ROWS:
            cells = [means(lab, method, settings, n, *then)[2] for n in COUNTS]
            print(f"| {title} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |", flush=True)
        print("\n| η of STAR | " + " | ".join(map(str, ETAS)) + " |\n|---|" + "---|" * len(ETAS))
        for n in COUNTS:
            cells = [means(lab, "star", {"eta": eta}, n)[2] for eta in ETAS]
            print(f"| {n} experts | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
