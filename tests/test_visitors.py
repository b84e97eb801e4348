"""Many visitors of one real page at once: each waits in line, works, closes; memory, files and the line come back."""

import json
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from sessions import Visitor, page, recipe_of, resident_mb, visited  # noqa: E402

FLAT = 60  # MB that a second half of visitors may add: allocators do not give all back at once; a session alone has 4
HEALTH = {"status", "version", "uptime", "running", "waiting", "models", "visitors", "bytes_kept", "bytes_on_disk"}


@pytest.fixture(scope="module")
def served():
    small = {"MERGELAB_MAX_KEPT_MB": "2", "MERGELAB_STORE_MB": "4"}  # so that what is kept on purpose is full at once
    with page(MERGELAB_MAX_MODELS="2", MERGELAB_MAX_WAITING="4", **small) as (url, process, place):
        yield url, process, place


def health(url):
    return httpx.get(f"{url}/healthz").json()


def asked(url, session, verb, data):
    """Ask, and follow the answer in a thread of its own, as an open tab does."""
    body = {"data": data, "session_hash": session}
    event = httpx.post(f"{url}/gradio_api/call/{verb}", json=body).json()["event_id"]
    heard = []
    answer = threading.Thread(
        target=lambda: heard.append(httpx.get(f"{url}/gradio_api/call/{verb}/{event}", timeout=120).text)
    )
    answer.start()
    return answer, heard


def test_many_visitors_leave_no_memory_no_files_and_an_empty_line(served):
    url, process, place = served
    ends = [visited(url, range(start, start + 12), 4) for start in (0, 12)]
    middle = resident_mb(process)
    ends.append(visited(url, range(24, 48), 4))
    assert resident_mb(process) <= middle + FLAT
    assert ends == [{"complete": 8, "abandoned": 4}] * 2 + [{"complete": 16, "abandoned": 8}]
    assert not [path for path in place.glob("mergelab-lab-*/visits/**/*") if path.is_file()]
    assert health(url).keys() == HEALTH and health(url)["models"] <= 2 and health(url)["bytes_on_disk"] == 0


def test_the_line_is_as_long_as_it_may_be_and_the_next_one_is_turned_away(served):
    url = served[0]
    sweep = [
        recipe_of(0).replace("star", "drm_h").replace("eta: 10", "drop: 0.5"),
        "drop",
        [i / 100 for i in range(60)],
        True,
    ]
    jobs = [asked(url, f"waiting-{i}", "sweep", sweep) for i in range(5)]
    while health(url)["waiting"] < 4:
        time.sleep(0.05)
    answer, heard = asked(url, "one-too-many", "merge", [recipe_of(1)])
    answer.join()
    assert "4 jobs are waiting here already" in heard[0]
    assert json.loads(httpx.get(f"{url}/gradio_api/info").text)
    for i in range(5):
        leave(url, f"waiting-{i}")
    for answer, _ in jobs:
        answer.join()
    assert (health(url)["running"], health(url)["waiting"]) == (0, 0)


def leave(url, session):
    """A heartbeat that is opened and cut."""
    with httpx.stream("GET", f"{url}/gradio_api/heartbeat/{session}") as answer:
        next(answer.iter_raw())


def test_a_visitor_opens_the_page_works_and_is_forgotten(served):
    url = served[0]
    assert Visitor(url, 6).visit() == "complete"
