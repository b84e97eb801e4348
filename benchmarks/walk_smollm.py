"""Every verb of the command line on a real model: SmolLM2-135M, a LoRA expert and a full one.

    python benchmarks/walk_smollm.py WORK [--steps 60] [--mergekit mergekit-yaml]

Trains the adapters into WORK if they are not there (smollm_experts.py says what must be installed). Prints a Markdown
table: each command, its exit status, seconds, peak memory and last line; then what each merge answers. With mergekit's
program, a folder that it made is one of the experts, and a recipe that mergelab has written is run there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from smollm_experts import adapter_folder, base_folder

SKILLS = ("french", "german")
METHODS = {"star": {"eta": 40}, "ties": {"density": 0.4}, "drm_h": {"drop": 0.5}, "tsv_m": {}}
PROMPTS = ("french: 347 =", "german: 347 =", "The capital of France is")

# Starts a program and waits for it: a child's peak memory counts what its parent held, so the parent must be small.
WAITER = """
import json, os, sys
_, status, used = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ), 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss / 1024]))
"""


def ran(command: list) -> tuple[int, float, float, str]:
    """Exit status, seconds, MB at the peak and last line of a command."""
    started = time.monotonic()
    small = [sys.executable, "-c", WAITER, *map(str, command)]
    done = subprocess.run(small, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    *said, used = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    status, memory = json.loads(used)
    return status, time.monotonic() - started, memory, (said or [""])[-1]


def recipe(path: Path, method: str, base: Path, experts: list, **settings) -> Path:
    """A recipe's file, in mergekit's words."""
    models = [{"model": str(expert), "parameters": {"weight": 1.0}} for expert in experts]
    data = {"merge_method": method, "base_model": str(base), "models": models, "parameters": settings}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def answers(folder: Path) -> list[str]:
    """What transformers, which knows nothing of mergelab, lets a folder say to each prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**given, max_new_tokens=16, do_sample=False)[0, given["input_ids"].shape[1] :]
        found.append(" ".join(tokenizer.decode(out, skip_special_tokens=True).split()))
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("work", type=Path)
    asked.add_argument("--steps", type=int, default=60)
    asked.add_argument("--mergekit", help="mergekit's program, mergekit-yaml")
    asked = asked.parse_args()
    base, (lora, other) = base_folder(asked.work), (adapter_folder(asked.work, s, asked.steps) for s in SKILLS)
    out = asked.work / "walk"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    print("| command | exit | s | MB | its last line |\n|---|---|---|---|---|")

    def walk(title: str, command: list) -> None:
        status, seconds, memory, last = ran(command)
        plain = last.replace(f"{asked.work}/", "").replace("|", "/")
        print(f"| {title} | {status} | {seconds:.1f} | {memory:.0f} | {plain[:150]} |", flush=True)

    def verb(title: str, *words) -> None:
        walk(title, [sys.executable, "-m", "mergelab", *words])

    verb("merge of one adapter: the full expert", "merge", recipe(out / "full.yaml", "linear", base, [other]),
         out / "full")  # fmt: skip
    mixed = {m: recipe(out / f"{m}.yaml", m, base, [lora, out / "full"], **s) for m, s in METHODS.items()}
    verb("check", "check", mixed["star"])
    verb("inspect", "inspect", mixed["star"])
    for method, file in mixed.items():
        more = ["--lora", 16] if method == "star" else []
        verb(" ".join(["merge", method, *map(str, more)]), "merge", file, out / method, *more)
    verb("export --rank 8", "export", out / "ties", out / "ties-lora", "--rank", 8)
    prompts = out / "prompts.txt"
    prompts.write_text("\n".join(f"french: {number} =" for number in (12, 85, 347, 402, 560, 731, 88, 999)))
    pairs = out / "pairs.jsonl"
    pairs.write_text('{"prompt": "french: 12 =", "answer": " douze"}\n{"prompt": "french: 20 =", "answer": " vingt"}\n')
    sweep = ["--knob", "eta", "--values", "20,60,100", "--prompts", pairs, "--measure", "perplexity"]
    verb("sweep of three η", "sweep", mixed["star"], *sweep)
    task = ["--task", f"french={lora}", "--data", prompts, "--samples", 8, "--plain"]
    verb("repair", "repair", mixed["star"], *task, "--out", out / "repaired")
    verb("align", "align", out / "full", "--to", base, "--out", out / "aligned")
    if asked.mergekit:
        theirs = recipe(out / "theirs.yaml", "ties", base, [out / "full"], density=0.5)
        onto = recipe(out / "onto.yaml", "star", base, [lora, out / "theirs"], eta=40)
        walk("mergekit's own merge", [asked.mergekit, theirs, out / "theirs", "--quiet"])
        verb("merge with its folder", "merge", onto, out / "onto")
        again = ["--lora-merge-cache", out / "laid-on", "--quiet"]
        walk("mergekit runs our recipe", [asked.mergekit, out / "ties/recipe.yaml", out / "again", *again])
    print("\n| model | " + " | ".join(PROMPTS) + " |\n|---|" + "---|" * len(PROMPTS))
    for name in ("full", *METHODS, "repaired/french", *(["onto", "again"] if asked.mergekit else [])):
        if (out / name / "config.json").is_file():
            print(f"| {name} | " + " | ".join(answers(out / name)) + " |", flush=True)


if __name__ == "__main__":
    main()
