"""One matrix at a time: what each road of the engine costs against the papers' own way, and how exact both are.

    python benchmarks/matrix.py [--quick]      prints a Markdown table

The papers' way is that of textbook.py. Both ways run in turn, on one thread, and the medians of their CPU seconds are
compared; what is exact is the papers' way in float64.
Deltas are drawn: a decaying signal in an eighth of the directions over a floor of noise, or adapters of rank 16.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from statistics import median

import textbook
import torch
from torch import Tensor

from mergelab import METHODS
from mergelab.maths.selection import kth_largest
from mergelab.maths.spectral import LowRank, dense
from mergelab.merging.memory import reused
from mergelab.method import Layer

Way = Callable[[], Tensor]
TURN = 0.05  # seconds
RANK = 16  # of adapters


def delta_of(out: int, columns: int, seed: int) -> Tensor:
    """A dense delta in float32: singular values k^-0.6 in an eighth of the directions, over full-rank noise."""
    draw = torch.Generator().manual_seed(seed)
    rank = max(1, min(out, columns) // 8)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=draw)).Q for n in (out, columns))
    signal = (left * torch.arange(1, rank + 1) ** -0.6) @ right.T
    return signal + 0.02 * torch.randn(out, columns, generator=draw) / min(out, columns) ** 0.5


def adapter_of(out: int, columns: int, seed: int, rank: int = RANK) -> LowRank:
    """A LoRA delta in float32 whose singular values span one and a half decades."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -1.5, rank)
    return LowRank(torch.randn(out, rank, generator=draw) * scale, torch.randn(rank, columns, generator=draw) / columns)


def layer_of(deltas: list) -> Layer:
    """A layer that holds them, of weight 1 each."""
    return Layer(
        "matrix", torch.zeros(deltas[0].shape), tuple(deltas), torch.ones(len(deltas)).double(), decompose=True
    )


def seconds(ways: list[Way], rounds: int) -> list[float]:
    """The median CPU seconds of each way; the ways take turns, and in each a short one is repeated for a while."""
    spent: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, times in zip(ways, spent):
            begin = start = time.thread_time()
            while not start > begin + TURN:
                way()
                times.append(time.thread_time() - start)
                start += times[-1]
    return [median(times) for times in spent]


def error(found: Tensor, exact: Tensor) -> float:
    """The relative distance in the Frobenius norm."""
    return float((found.double() - exact).norm() / exact.norm())


def row(what: str, papers: Way, ours: Way, exact: Tensor | None, rounds: int, road: str = "") -> str:
    """One line of the table."""
    theirs, mine = seconds([papers, ours], rounds)
    errors = ["–", "–"] if exact is None else [f"{error(way(), exact):.1e}" for way in (papers, ours)]
    return (
        f"| {what} | {1e3 * theirs:.1f} | {1e3 * mine:.1f} | **{theirs / mine:.1f}×** | {' | '.join(errors)} | {road} |"
    )


def dense_rows(quick: bool) -> Iterator[str]:
    """STAR, DRM and TIES on full deltas."""
    shapes = [(576, 576), (768, 768), (1536, 576), (3072, 768), (1024, 1024), (2048, 2048)]
    for out, columns in shapes[: 2 if quick else None]:
        yield method_row("star", [delta_of(out, columns, seed=0)], 3 if out > 1536 else 7)
    for n, count in [(768, 2), (768, 4), (768, 8), (1024, 8)][: 1 if quick else None]:
        deltas = [delta_of(n, n, seed) for seed in range(count)]
        yield from (method_row(name, deltas, 3) for name in ("drm_h", "drm_v"))
    deltas = [delta_of(1536, 576, seed) for seed in range(4)]
    yield from (method_row(name, deltas, 3) for name in ("drm_h", "drm_v"))
    yield method_row("ties", deltas, 7, density=0.2)


def adapter_rows(quick: bool) -> Iterator[str]:
    """STAR and DRM on adapters of rank 16."""
    for out, columns in [(768, 768), (1024, 1024), (3072, 768)][: 1 if quick else None]:
        deltas = [adapter_of(out, columns, seed) for seed in range(4)]
        yield method_row("star", deltas, 3)
        yield method_row("star", deltas, 9, partial(textbook.star_of_sketches, rank=RANK), ", against `svd_lowrank`")
        yield from (method_row(name, deltas, 3) for name in ("drm_h", "drm_v"))


def method_row(
    name: str, deltas: list, rounds: int, papers: Callable | None = None, against: str = "", **settings: float
) -> str:
    """A method against the papers' way, on the same deltas; adapters are multiplied out there first."""
    method, papers = METHODS[name], papers or textbook.METHODS[name]
    kind = "adapters" if isinstance(deltas[0], LowRank) else "full"
    what = f"{method.title}, {len(deltas)} {kind} {'×'.join(map(str, deltas[0].shape))}{against}"
    exact = textbook.METHODS[name]([dense(delta.to(torch.float64)) for delta in deltas])
    layer = layer_of(deltas)
    road = method(layer, **settings).roads[:1]

    def theirs() -> Tensor:
        return papers([dense(delta) for delta in deltas])

    def ours() -> Tensor:
        return method(replace(layer), **settings).delta  # a copy that knows no factors yet

    return row(what, theirs, ours, exact, rounds, *road)


def selection_rows(quick: bool) -> Iterator[str]:
    """The k-th largest magnitude, for k a fifth of all."""
    for size in [600_000, 2_400_000, 9_400_000][: 1 if quick else None]:
        values = delta_of(size // 1000, 1000, seed=0).abs().flatten()
        ours = partial(kth_largest, values, size // 5)
        for papers in (partial(torch.topk, values, size // 5), partial(torch.kthvalue, values, size - size // 5 + 1)):
            yield row(f"threshold of {size / 1e6:g} M, `{papers.func.__name__}`", papers, ours, None, 5)


def main() -> None:
    """Print the table, and on what it was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes alone")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    print(f"{date.today()}, {processor()}, one thread, torch {torch.__version__}, Python {platform.python_version()}\n")
    print(
        "| what | papers' way, ms | ours, ms | ratio | their error | our error | road |\n|---|---|---|---|---|---|---|"
    )
    with reused():  # as in a merge, for both ways
        for rows in (dense_rows, adapter_rows, selection_rows):
            for line in rows(quick):
                print(line, flush=True)


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
