"""Whole merges, measured as a user meets them: a process from its start to its end, with imports, reading and writing.

`make bench` prints the tables of matrices and of whole merges in benchmarks/README.md, those of matrix.py first.
Candidates take turns within one run, and what is compared is their ratio there; every number is of this machine as busy
as it was. `--quick` tries the harness with a small model. `--mergekit PYTHON` compares with mergekit too, where that
interpreter can import it. All is written in a temporary folder, unless `--keep FOLDER` names one for the models.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from synthetic import SHAPES, written

HERE = Path(__file__).resolve().parent
METHODS = {"star": {"eta": 40}, "drm_h": {"drop": 0.8}, "drm_v": {"drop": 0.8}, "ties": {"density": 0.2}, "linear": {}}
OFF = {"MERGELAB_CACHE": "off", "MERGELAB_STORE_MB": "0"}


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds by the clock, of all cores, and its largest memory in MB."""

    wall: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s, {self.cpu:.1f} CPU-s, {self.memory:.0f} MB"


class Bench:
    """A folder of models, and the ways to merge them."""

    def __init__(self, folder: Path, size: str, mergekit: str | None):
        self.folder, self.size, self.mergekit, self.count = folder, size, mergekit, 0

    def models(self, dtype: str, kind: str, experts: int = 4, size: str | None = None) -> list[Path]:
        size = size or self.size
        where = self.folder / f"{size}-{dtype}".replace(" ", "").replace(",", "-")
        return written(SHAPES[size], where, getattr(torch, dtype), experts, kind)

    def recipe(self, method: str, models: list[Path], settings: dict | None = None) -> Path:
        self.count += 1
        path = self.folder / f"recipe-{self.count}.yaml"
        entries = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models[1:]]
        data = {"merge_method": method, "base_model": str(models[0]), "models": entries}
        path.write_text(json.dumps(data | {"parameters": METHODS[method] if settings is None else settings}))
        return path

    def ours(
        self, method: str, models: list[Path], workers: int = 2, settings: dict | None = None, **more: str
    ) -> Cost:
        command = ["-m", "mergelab", "merge", str(self.recipe(method, models, settings))]
        return self.run([sys.executable, *command, "OUT", "--workers", str(workers), "--device", "cpu"], OFF | more)

    def processes(self, method: str, models: list[Path], count: int) -> Cost:
        launch = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "-m", "mergelab", "merge"]
        command = [sys.executable, *launch, str(self.recipe(method, models)), "OUT", "--workers", "1"]
        return self.run(command, OFF)

    def textbook(self, method: str, models: list[Path], threads: int = 2) -> Cost:
        command = [sys.executable, str(HERE / "textbook_job.py"), method, "OUT", *map(str, models)]
        return self.run(command, {"OMP_NUM_THREADS": str(threads)})

    def theirs(self, method: str, models: list[Path], threads: int = 1) -> Cost:
        recipe = self.recipe(method, models)
        if method == "linear":  # which takes a base for one more expert
            recipe.write_text(
                json.dumps({k: v for k, v in json.loads(recipe.read_text()).items() if k != "base_model"})
            )
        program = [str(Path(self.mergekit).with_name("mergekit-yaml")), str(recipe), "OUT"]
        return self.run([*program, "-j", str(threads), "--lazy-unpickle"], {"OMP_NUM_THREADS": str(threads)})

    def said(self, arguments: list[str]) -> str:
        """What a program of ours prints, with factors kept in memory alone."""
        kept = {"PYTHONPATH": str(HERE.parent), "MERGELAB_CACHE": "off", "MERGELAB_STORE_MB": "2048"}
        done = subprocess.run(
            [sys.executable, *arguments], env=os.environ | kept, capture_output=True, text=True, check=True
        )
        return done.stdout

    def run(self, command: list[str], environment: dict[str, str]) -> Cost:
        """A command in a process of its own; OUT stands for a folder that goes when it is done."""
        out = self.folder / f"out-{time.monotonic_ns()}"
        command = [str(out) if part == "OUT" else part for part in command]
        paths = {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
        started = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", WAITER, *command],
            env=os.environ | paths | environment,
            capture_output=True,
            text=True,
        )
        wall = time.monotonic() - started
        shutil.rmtree(out, ignore_errors=True)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {process.stderr[-2000:]}")
        return Cost(wall, *json.loads(process.stdout))


# Starts a program and waits for it: a child's peak memory counts what its parent held, so the parent must be small.
WAITER = """
import json, os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, used = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def in_turn(pairs: int, *candidates) -> list[list[Cost]]:
    """Each candidate so many times, one after the other: a list of costs per candidate."""
    rounds = [[candidate() for candidate in candidates] for _ in range(pairs)]
    return [list(costs) for costs in zip(*rounds)]


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in ("wall", "cpu", "memory")))


def ratio(others: list[Cost], ours: list[Cost]) -> str:
    """How many times as much the others took: wall, CPU, memory; the median of the rounds."""
    parts = [
        statistics.median(getattr(o, name) / getattr(u, name) for o, u in zip(others, ours))
        for name in ("wall", "cpu", "memory")
    ]
    return " | ".join(f"{part:.1f}×" for part in parts)


def table(title: str, *columns: str) -> None:
    print(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def against_the_textbook(bench: Bench, pairs: int) -> None:
    columns = ("job", "the textbook way", "mergelab", "wall", "CPU", "memory")
    table("Whole jobs, four experts, against the textbook way", *columns)
    for dtype, kind, methods in (
        ("bfloat16", "full", METHODS),
        ("float32", "full", ("linear",)),
        ("bfloat16", "lora", ("star",)),
    ):
        models = bench.models(dtype, kind)
        for method in methods:
            for cores in (2, 1) if (method, kind) == ("star", "full") else (2,):
                job = (method, models, cores)
                theirs, ours = in_turn(pairs, partial(bench.textbook, *job), partial(bench.ours, *job))
                name = f"{method}, {kind}, {dtype}, {cores} core{'s' * (cores > 1)}"
                row(name, median(theirs), median(ours), ratio(theirs, ours))


def against_mergekit(bench: Bench, pairs: int) -> None:
    if not bench.mergekit:
        print("\n## Against mergekit\n\nNot measured: no interpreter with mergekit was given.")
        return
    asked = [bench.mergekit, "-c", "import torch; print(torch.__version__)"]  # one for CUDA takes more to be imported
    build = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    columns = ("job", "mergekit", "mergelab", "wall", "CPU", "memory")
    table(f"Against mergekit with torch {build}; mergelab with {torch.__version__}", *columns)
    models = bench.models("bfloat16", "full")
    for method in ("ties", "linear"):
        for cores in (1, 2):
            job = (method, models, cores)
            theirs, ours = in_turn(pairs, partial(bench.theirs, *job), partial(bench.ours, *job))
            name = f"{method}, bfloat16, {cores} thread{'s' * (cores > 1)} each"
            row(name, median(theirs), median(ours), ratio(theirs, ours))
    theirs, ours = in_turn(pairs, partial(bench.theirs, "ties", models, 2), partial(bench.ours, "star", models, 2))
    row("our exact STAR against its TIES, 2 threads each", median(theirs), median(ours), ratio(theirs, ours))


def many_workers(bench: Bench, pairs: int) -> None:
    table("One worker against two, one process against two", "job", "one", "two", "wall", "CPU", "memory")
    models = bench.models("bfloat16", "full")
    for method in ("star", "drm_v"):
        one, two = in_turn(pairs, partial(bench.ours, method, models, 1), partial(bench.ours, method, models, 2))
        row(f"{method}, workers", median(one), median(two), ratio(one, two))
    one, two = in_turn(pairs, *(partial(bench.processes, "star", models, count) for count in (1, 2)))
    row("star, processes of torchrun", median(one), median(two), ratio(one, two))


def merged_again(bench: Bench, pairs: int) -> None:
    columns = ("job", "first", "again, η = 35", "wall", "CPU", "memory")
    table("A first merge against one at a new η", *columns)
    models = bench.models("bfloat16", "full")
    first, again = [], []
    for i in range(pairs):
        kept = {"MERGELAB_CACHE": str(bench.folder / f"factors-{i}"), "MERGELAB_STORE_MB": "512"}
        first.append(bench.ours("star", models, 2, {"eta": 40}, **kept))
        again.append(bench.ours("star", models, 2, {"eta": 35}, **kept))
        shutil.rmtree(kept["MERGELAB_CACHE"])
    row("a new process that finds the factors on disk", median(first), median(again), ratio(first, again))
    said = [json.loads(bench.said(["-c", TWICE, *map(str, models)])) for _ in range(pairs)]
    table("The same within one process, without imports", "job", "seconds", "less than the first")
    first, again, point = (statistics.median(seconds[i] for seconds in said) for i in range(3))
    row("first merge to files, η = 40", f"{first:.2f}", "")
    row("again to files, η = 35", f"{again:.2f}", f"{first / again:.1f}×")
    row("in memory, a point of a sweep over η", f"{point:.2f}", f"{first / point:.1f}×")


TWICE = """
import json, statistics, sys, tempfile, time
from mergelab import Expert, Recipe, merge, plan, result
from mergelab.scores.sweep import sweep

def recipe(eta):
    return Recipe(sys.argv[1], tuple(map(Expert, sys.argv[2:])), "star", {"eta": eta})

def seconds(eta, out):
    return result(merge(plan(recipe(eta)), out)).seconds

with tempfile.TemporaryDirectory() as folder:
    said = [seconds(40.0, folder + "/first"), seconds(35.0, folder + "/again")]
job, ends = sweep(plan(recipe(40.0)), "eta", [35.0, 36.0, 37.0, 38.0]), []
for step in job:
    if step.made:
        ends.append(time.monotonic())
print(json.dumps([*said, statistics.median(b - a for a, b in zip(ends[1:], ends[2:]))]))
"""


def accuracy(bench: Bench, pairs: int) -> None:
    """How far the merged deltas of one layer's matrices are from the same formulas in float64 with whole SVDs."""
    import textbook

    from mergelab import METHODS as methods
    from mergelab import Expert, Recipe, plan

    table(
        "Accuracy: relative to the merged delta of the textbook in float64",
        "method",
        "mergelab",
        "the textbook, float32",
    )
    for method, kind in (("star", "full"), ("star", "lora"), ("drm_h", "full"), ("drm_v", "full")):
        models = bench.models("bfloat16", kind)
        work = plan(Recipe(str(models[0]), tuple(Expert(str(model)) for model in models[1:]), method))
        errors = []
        for name in [name for name in work.names if "layers.0." in name and work.decomposes(name)][:5]:
            layer = work.layer(name, "cpu")
            dense = [delta if isinstance(delta, torch.Tensor) else delta.dense() for delta in layer.deltas]
            exact = textbook.METHODS[method]([delta.double() for delta in dense])
            made = methods[method](layer, **METHODS[method]).delta, textbook.METHODS[method](dense)
            errors.append([float((delta.double() - exact).norm() / exact.norm()) for delta in made])
        row(f"{method}, {kind}", *(f"{max(column):.1e}" for column in zip(*errors)))


def growth(bench: Bench, pairs: int) -> None:
    table("Growth: STAR, 2 workers", "model", "experts", "mergelab")
    sizes = [("small", n) for n in (2, 4, 8, 16)]
    sizes += [(size, 4) for size in ("360M, 2 layers", "1B, 1 layer")] if bench.size != "small" else []
    for size, experts in sizes:
        models = bench.models("bfloat16", "full", experts, size)
        (ours,) = in_turn(pairs, partial(bench.ours, "star", models))
        row(size, experts, median(ours))


def floor(bench: Bench) -> None:
    """What the job cannot be quicker than: its bytes, and its multiplications at this core's rate."""
    models = bench.models("bfloat16", "full")
    read = sum((model / "model.safetensors").stat().st_size for model in models)
    square = torch.randn(1024, 1024, dtype=torch.float64)
    torch.set_num_threads(1)
    square @ square
    started = time.thread_time()
    for _ in range(5):
        square @ square
    rate = 5 * 2 * 1024**3 / (time.thread_time() - started)
    sizes = [size for name, size in SHAPES[bench.size].tensors().items() if "_proj" in name]
    grams = 4 * sum(max(size) * min(size) ** 2 for size in sizes)
    tridiagonal = 4 * sum(4 / 3 * min(size) ** 3 for size in sizes)
    table("The floor of STAR with four experts", "what", "how much", "at this machine's rate")
    row("read", f"{read / 1e9:.2f} GB", "")
    row("written", f"{read / len(models) / 1e9:.2f} GB", "")
    row("Gram matrices", f"{grams / 1e9:.0f} GFLOP", f"{grams / rate:.1f} CPU-s at {rate / 1e9:.0f} GFLOP/s, float64")
    row("tridiagonal forms", f"{tridiagonal / 1e9:.0f} GFLOP", f"{tridiagonal / rate:.1f} CPU-s")


def machine() -> str:
    """One line: day, processor, cores, versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    return (
        f"{date.today()}, {name}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}; load of the machine at the start {load:.1f}"
    )


PARTS = {
    "textbook": against_the_textbook,
    "mergekit": against_mergekit,
    "workers": many_workers,
    "again": merged_again,
    "growth": growth,
    "accuracy": accuracy,
    "floor": lambda bench, pairs: floor(bench),
}


def main() -> None:
    sys.path.insert(0, str(HERE.parent))  # this very code, not one that is installed
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="135M")
    parser.add_argument("--quick", action="store_true", help="a small model and few matrices, to try it all out")
    parser.add_argument("--pairs", type=int, default=1, help="rounds of each comparison; medians are shown")
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that has mergekit")
    parser.add_argument("--only", nargs="+", choices=["matrix", *PARTS], default=["matrix", *PARTS])
    parser.add_argument("--keep", metavar="FOLDER", help="where the models are made, and stay")
    asked = parser.parse_args()
    size = "small" if asked.quick else asked.size
    if "matrix" in asked.only:
        print("\n## One matrix at a time\n", flush=True)
        subprocess.run(
            [sys.executable, str(HERE / "matrix.py"), *["--quick"] * asked.quick],
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
            check=True,
        )
    print(f"\n{machine()}; shape: {size}; median of {asked.pairs}.")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(asked.keep or folder), size, asked.mergekit)
        bench.folder.mkdir(parents=True, exist_ok=True)
        for part in asked.only:
            if part != "matrix":
                PARTS[part](bench, asked.pairs)


if __name__ == "__main__":
    main()
