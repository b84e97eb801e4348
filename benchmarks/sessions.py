"""Many visitors of one page, and the memory and the files that they leave behind: `python benchmarks/sessions.py`.

A real page in public mode, in a process of its own. Each visitor opens it as a browser does (the page, its heartbeat,
an event), does one of several things, and closes; every third closes in the middle of it. The memory of the server's
process is read at the start and after each quarter of them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

HOUSE = Path(__file__).resolve().parent.parent
EXPERTS = ("french", "german", "english", "spanish", "morse", "roman", "reverse", "sort")
METHODS = {"star": "{eta: %d}", "ties": "{density: 0.%d}", "linear": "{}", "drm_h": "{drop: 0.%d}"}
VERBS = ("check", "inspect", "merge", "generate", "sweep", "list_methods")
SERVER = "from mergelab.page import launch; launch(server_name='127.0.0.1', quiet=True, prevent_thread_lock=False)"


@contextmanager
def page(**environment: str) -> Iterator[tuple[str, int, Path]]:
    """A page in public mode; its address, its process, and the place of its temporary files."""
    with tempfile.TemporaryDirectory(prefix="mergelab-sessions-") as place:
        port = str(free_port())
        env = os.environ | {"PYTHONPATH": str(HOUSE), "MERGELAB_PUBLIC": "1", "GRADIO_SERVER_PORT": port}
        env |= {"GRADIO_HEARTBEAT_INTERVAL": "1", "TMPDIR": place, "MERGELAB_CACHE": f"{place}/cache"}
        env |= {"MALLOC_ARENA_MAX": "2"} | environment  # or each of many threads keeps a heap of its own
        with open(Path(place) / "log", "w") as log:
            process = subprocess.Popen([sys.executable, "-c", SERVER], env=env, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with suppress(httpx.HTTPError):
                    httpx.get(f"{url}/healthz")
                    break
                assert process.poll() is None, (Path(place) / "log").read_text()
                time.sleep(0.1)
            yield url, process.pid, Path(place)
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Visitor:
    """One browser: a session with its heartbeat, which presses buttons by calling the verbs behind them."""

    def __init__(self, url: str, number: int):
        self.url, self.number, self.session = url, number, f"visitor{number:05}x{os.getpid()}"
        self.client = httpx.Client(base_url=url, timeout=120)
        self._leaves = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        with (
            suppress(httpx.HTTPError),
            self.client.stream("GET", f"/gradio_api/heartbeat/{self.session}") as answer,
        ):
            for _ in answer.iter_raw():
                if self._leaves.is_set():
                    return

    def visit(self) -> str:
        """Open the page, do one thing, close; how it ended."""
        self.client.get("/").raise_for_status()
        self._pulse.start()
        try:
            return self._asked(VERBS[self.number % len(VERBS)], abandons=self.number % 3 == 2)
        finally:
            self._leaves.set()
            self._pulse.join(5)
            self.client.close()

    def _asked(self, verb: str, abandons: bool) -> str:
        body = {"data": self._data(verb), "session_hash": self.session}
        event = self.client.post(f"/gradio_api/call/{verb}", json=body).raise_for_status().json()["event_id"]
        if abandons:
            return "abandoned"
        answer = self.client.get(f"/gradio_api/call/{verb}/{event}").text
        kind, data = answer.strip().split("\n")[-2:]
        if verb == "merge" and kind == "event: complete":
            place = json.loads(data.removeprefix("data: "))[0]["download"]
            assert self.client.get(place).content[:2] == b"PK"
        return kind.removeprefix("event: ") if kind == "event: complete" else f"{verb}: {data[:200]}"

    def _data(self, verb: str) -> list:
        recipe = recipe_of(self.number)
        more = {
            "generate": ["french: 21 =", 8, 0.0, 0],
            "sweep": ["eta" if "star" in recipe else "experts", [2], False],
        }
        return [] if verb == "list_methods" else [recipe, *more.get(verb, [])]


def recipe_of(number: int) -> str:
    """A recipe that is another for each number, but now and then the same."""
    method = list(METHODS)[number // 2 % len(METHODS)]
    settings = METHODS[method] % (10 + number % 80) if "%" in METHODS[method] else METHODS[method]
    models = [f"{{model: numbers/{EXPERTS[(number + i) % 8]}}}" for i in range(2 + number % 3)]
    return (
        f"{{merge_method: {method}, base_model: numbers/base, models: [{', '.join(models)}], parameters: {settings}}}"
    )


def resident_mb(process: int) -> float:
    """The memory of a process, in megabytes."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024


def memory_of(url: str, process: int) -> tuple[float, float]:
    """The memory of a page's process, and what analyses and factors take of it, in MB."""
    return resident_mb(process), httpx.get(f"{url}/healthz").json()["bytes_kept"] / 1e6


def visited(url: str, numbers: range, at_once: int) -> dict[str, int]:
    """So many visits, some at once; how they ended, counted. Returns when the server has done all that was asked."""
    ends: dict[str, int] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for end in pool.map(lambda number: Visitor(url, number).visit(), numbers):
            ends[end] = ends.get(end, 0) + 1
    for _ in range(600):
        health = httpx.get(f"{url}/healthz").json()
        if not (health["running"] or health["waiting"] or health["visitors"]):
            return ends
        time.sleep(0.2)
    raise AssertionError(f"visitors have left, and their work has not: {health}")


def files_in(place: Path) -> int:
    """The files that visitors have left behind."""
    return sum(path.is_file() for path in place.glob("mergelab-lab-*/visits/**/*"))


def measured(visitors: int, at_once: int) -> tuple[list[tuple[float, float]], dict[str, int], int, dict]:
    """Memory, and what of it is kept on purpose, in MB, at the start and after each quarter; how visits ended; files
    left behind; the page's health at the end."""
    with page() as (url, process, place):
        visited(url, range(len(VERBS)), 1)  # imports, the bundled models: what every page loads once
        memory, ends = [memory_of(url, process)], {}
        for quarter in range(4):
            numbers = range(visitors * quarter // 4, visitors * (quarter + 1) // 4)
            for end, count in visited(url, numbers, at_once).items():
                ends[end] = ends.get(end, 0) + count
            memory.append(memory_of(url, process))
        return memory, ends, files_in(place), httpx.get(f"{url}/healthz").json()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--visitors", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    asked = parser.parse_args()
    started = time.monotonic()
    memory, ends, left, health = measured(asked.visitors, asked.at_once)
    print(f"{asked.visitors} visitors, {asked.at_once} at once, {time.monotonic() - started:.0f} s: {ends}")
    said = ", ".join(f"{mb:.0f} ({kept:.0f})" for mb, kept in memory)
    print(f"memory in MB (kept on purpose), at the start and after each quarter: {said}")
    print(f"files left behind: {left}; {health}")


if __name__ == "__main__":
    main()
