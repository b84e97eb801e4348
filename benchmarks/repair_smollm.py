"""Repair at real scale: SmolLM2-135M, two LoRA experts that write numbers in French and in German, merged, repaired.

    python benchmarks/repair_smollm.py WORK [--steps 120] [--samples 32] [--prompts 40]

Trains the adapters into WORK if they are not there (smollm_experts.py says what must be installed), merges them with
mergelab, repairs, and prints a Markdown table of exact matches on held-out numbers, controls included.
"""

import argparse
from pathlib import Path
from statistics import fmean

from smollm_experts import adapter_folder, base_folder, task

from mergelab.merging.merge import merge
from mergelab.model import Running, running
from mergelab.planning.plan import plan
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.repair import How, Patch, applied, fit, repair, sites, statistics
from mergelab.repair.calibration import batches_of
from mergelab.repair.export import folded
from mergelab.tasks import exact_match

SKILLS = ("french", "german")
OTHER_WAYS = {"first positions left out": How(drop_first=True), "by scale alone (rms)": How("rms")}


def opened(folder: Path) -> Running:
    """A folder loaded; its prompts are plain text, as those that the experts were trained on."""
    run = running(folder)
    run.tokenizer.chat_template = None
    return run


def made(work: Path, name: str, recipe: Recipe) -> Path:
    """A merge in the working folder, made once."""
    if not (work / name).is_dir():
        for _ in merge(plan(recipe), work / name):
            pass
    return work / name


def score(run: Running, skill: str, prompts: int, patch: Patch | None = None) -> float:
    """Exact match on the first held-out prompts of a skill, with a patch or without."""
    pairs = task(skill)["test"][:prompts]
    if patch is None:
        return float(exact_match(run.model, run.tokenizer, pairs, batch=20).float().mean())
    with applied(run.model, patch):
        return score(run, skill, prompts)


def measured(models: dict[str, Running], skill: str, samples: int, prompts: int) -> tuple[dict[str, float], str]:
    """What everyone scores on a skill, by name; and a sentence on its repair. models: base, average, expert, other."""
    average, expert, where = models["average"], models["expert"], sites(models["average"].model)
    batches = batches_of(expert, [(prompt, None) for prompt, _ in task(skill)["calibration"][:samples]])
    goals = statistics(expert.model, batches, where)
    patch, report = repair(average.model, goals, batches, where, task=skill)
    shares = {
        "base": score(models["base"], skill, prompts),
        "its expert": score(expert, skill, prompts),
        "average of both": score(average, skill, prompts),
        "average, repaired": score(average, skill, prompts, patch),
    }
    for name, how in OTHER_WAYS.items():
        found = statistics(expert.model, batches, where, drop_first=how.drop_first)
        shares[f"…, {name}"] = score(average, skill, prompts, fit(average.model, found, batches, where, how=how))
    maps = [site.name for site in where if site.kind == "linear" and site.side == "out"]
    some = sites(average.model, maps)
    shares["…, outputs of linear maps alone"] = score(average, skill, prompts, fit(average.model, goals, batches, some))
    for name, run in (("base", models["base"]), ("the other expert", models["other"])):
        same, _ = repair(run.model, goals, batches, where, task=skill)
        shares[f"control: {name}, repaired"] = score(run, skill, prompts, same)
    done = folded(average.model, patch, {key: tensor[:4] for key, tensor in batches[0].items()})
    before, after = report.ratios
    least = min(one.ratio() for one in report.channels)
    return shares, (
        f"{skill}: variance ratio {before:.2f} → {after:.2f} (least of a site before: {least:.2f}), "
        f"{len(where)} sites, {patch.tokens} tokens, {report.clamped} channels clamped, {report.dead} dead; "
        f"largest |hooked − folded| {done.difference:.1e} where outputs reach {done.scale:.0f}"
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("work", type=Path)
    for name, default in (("steps", 120), ("samples", 32), ("prompts", 40)):
        asked.add_argument(f"--{name}", type=int, default=default)
    asked = asked.parse_args()
    base = base_folder(asked.work)
    adapters = {skill: adapter_folder(asked.work, skill, asked.steps) for skill in SKILLS}
    experts = {
        skill: opened(made(asked.work, f"{folder.name}-whole", Recipe(str(base), (Expert(str(folder)),), "linear")))
        for skill, folder in adapters.items()
    }
    pair = tuple(Expert(str(adapter)) for adapter in adapters.values())
    average = opened(made(asked.work, f"average-{asked.steps}", Recipe(str(base), pair, "linear")))
    found = []
    for skill, other in zip(SKILLS, reversed(SKILLS)):
        models = {"base": opened(base), "average": average, "expert": experts[skill], "other": experts[other]}
        found.append(measured(models, skill, asked.samples, asked.prompts))
    print(f"| exact match on {asked.prompts} prompts | " + " | ".join(SKILLS) + " | mean |\n|---|" + "---|" * 3)
    for name in found[0][0]:
        shares = [shares[name] for shares, _ in found]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in (*shares, fmean(shares))) + " |")
    print("", *(sentence for _, sentence in found), sep="\n- ")


if __name__ == "__main__":
    main()
