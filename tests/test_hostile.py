"""What a hostile visitor may try on a page in public mode, and what hostile files may say: nothing comes of it."""

import json
import logging
import re
import shutil
import socket

import gradio as gr
import httpx
import pytest
from hub import TOKEN
from making import merged, recipe_of, shifted, tiny, write_model

from mergelab.lab.lab import Lab
from mergelab.limits import Limits
from mergelab.markdown import code, fenced, plain
from mergelab.page import launch

SCRIPT = "<script>window.hit = 1</script>"
EVIL = [
    SCRIPT,
    "<img src=x onerror='window.hit = 1'>",
    "[a](javascript:window.hit=1)",
    "![x](http://evil.example/x.png)",
]
EVIL += ["`" + EVIL[1], "```\n" + EVIL[1], "</code>" + SCRIPT, "*]*(javascript:alert(1))"]
FILES = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc/passwd",
    "..%252f..%252fetc/passwd",
    "~/.ssh/id_rsa",
]
FILES += [
    "/proc/self/environ",
    "file:///etc/passwd",
    "README.md",
    "mergelab/limits.py",
    "/etc//passwd",
    "\x00/etc/passwd",
]
RECIPE = "{merge_method: linear, base_model: numbers/base, models: [{model: numbers/french}, {model: %s}]}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("runs"), device="cpu", limits=Limits.read({"MERGELAB_PUBLIC": "1"}))


@pytest.fixture(scope="module")
def url(lab):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"server_name": "127.0.0.1", "server_port": port, "max_file_size": "1kb"}
    _, address, _ = launch(lab, prevent_thread_lock=True, quiet=True, **options)
    yield address.rstrip("/")
    gr.close_all(verbose=False)


def called(url, verb, **given):
    """What an endpoint answers: the event's kind, and its data."""
    return answer_of(url, f"v2/{verb}", given)


def answer_of(url, verb, body):
    start = httpx.post(f"{url}/gradio_api/call/{verb}", json=body)
    assert start.status_code == 200, start.text
    answer = httpx.get(f"{url}/gradio_api/call/{verb}/{start.json()['event_id']}", timeout=60).text
    kind, data = answer.strip().split("\n")[-2:]
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize("path", FILES, ids=repr)
def test_no_file_of_this_machine_is_served(url, path):
    for place in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", ""):
        try:
            answer = httpx.get(f"{url}/{place}{path}")
        except httpx.InvalidURL:
            continue
        text = answer.text
        assert "root:" not in text and "PATH=" not in text and "dataclass" not in text and "# mergelab\n" not in text


@pytest.mark.parametrize(
    "source", ["/etc", "../x", "numbers/../../etc", "numbers/french+/etc", "assets/numbers", EVIL[1]]
)
@pytest.mark.parametrize("verb", ["check", "inspect", "merge", "sweep", "repair", "generate"])
def test_no_endpoint_takes_a_path(url, verb, source):
    more = {"sweep": {"knob": "experts", "values": [1]}, "generate": {"prompt": "x"}}.get(verb, {})
    kind, said = called(url, verb, recipe=RECIPE % json.dumps(source), **more)
    assert kind == "error" and "On this page a model is a bundled one" in json.dumps(said) and "<img" not in str(said)


@pytest.mark.parametrize(
    "verb, given",
    [
        ("check", {"recipe": None}),
        ("check", {"recipe": 7}),
        ("check", {"recipe": "x" * 300_000}),
        ("check", {"recipe": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmerge_method: *c"}),
        ("merge", {"recipe": "!!python/object/apply:os.system ['true']"}),
        ("sweep", {"recipe": RECIPE % "numbers/sort", "knob": "experts", "values": "all"}),
        ("sweep", {"recipe": RECIPE % "numbers/sort", "knob": "experts", "values": [1] * 61}),
        ("sweep", {"recipe": RECIPE % "numbers/sort", "knob": "../x", "values": [1]}),
        ("repair", {"recipe": RECIPE % "numbers/sort", "samples": 1e300}),
        ("repair", {"recipe": RECIPE % "numbers/sort", "tasks": ["../x"]}),
        ("generate", {"recipe": RECIPE % "numbers/sort", "prompt": "x", "tokens": 10**9}),
        ("generate", {"recipe": RECIPE % "numbers/sort", "prompt": "x", "tokens": "many"}),
    ],
)
def test_nonsense_is_answered_by_a_sentence_and_is_no_fault(url, verb, given):
    kind, said = called(url, verb, **given)
    assert kind == "error" and "fault of mergelab" not in json.dumps(said), said


def test_a_run_belongs_to_the_session_that_made_it(url, lab):
    kind, (report,) = answer_of(url, "merge", {"data": [RECIPE % "numbers/sort"], "session_hash": "one-visitor"})
    assert kind == "complete" and httpx.get(url + report["download"]).status_code == 200
    key = report["download"].split("/")[-2]
    assert len(report["download"].split("/")[-3]) == 32, "a folder whose name cannot be guessed"
    lab.visitor = lambda: "another-visitor"
    with pytest.raises(Exception, match="not kept any more"):
        lab.run_named(key)
    place = report["download"].rsplit("/", 2)[0]
    for folder in (place, place.rsplit("/", 1)[0], str(lab.folder)):
        assert httpx.get(url + folder).status_code in (403, 404), "no folder is listed"
    lab.leave("one-visitor")
    assert httpx.get(url + report["download"]).status_code == 403


def test_an_upload_that_is_too_large_is_refused_and_a_page_among_them_is_no_page(url):
    large = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.txt", b"x" * 5000)})
    assert large.status_code == 413
    small = httpx.post(f"{url}/gradio_api/upload", files={"files": ("../../../a<b>.html", f"{SCRIPT}".encode())})
    (path,) = small.json()
    assert ".." not in path and "<" not in path
    answer = httpx.get(f"{url}/gradio_api/file={path}")
    assert (
        answer.headers["content-disposition"].startswith("attachment") and "html" not in answer.headers["content-type"]
    )


@pytest.fixture
def evil(tmp_path):
    """A base and two experts whose names, tensors, cards and licences are hostile, and a file that could be a page."""
    base = tiny() | {"x.weight": tiny()["a.weight"]}
    write_model(tmp_path / "base", base)
    folders = [tmp_path / text.replace("/", "|").replace("\n", " ") for text in (EVIL[1], EVIL[2])]
    for i, folder in enumerate(folders):
        own = {text: base["a.weight"].clone() for text in EVIL}
        write_model(folder, shifted(base, seed=i) | own)
        front = json.dumps({"base_model": EVIL[i], "license": EVIL[3 - i] + SCRIPT})
        (folder / "README.md").write_text(f"---\n{front}\n---\n{SCRIPT}")
    (tmp_path / "base/LICENSE.html").write_text(SCRIPT)
    (tmp_path / "base/README.md").write_text(f"---\nlicense: {json.dumps(EVIL[1])}\n---\n")
    return tmp_path / "base", *folders


def outside_of_code(text):
    """A card without its front matter, its fences and its code: what a reader of Markdown takes for markup."""
    text = text.split("---\n", 2)[2]
    text = re.sub(r"^(`{3,})\w*\n.*?^\1\n", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)


def test_the_model_card_shows_hostile_words_as_words(evil, tmp_path):
    merged(recipe_of(*evil, vocabulary="base"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "window.hit" in card
    left = outside_of_code(card)
    assert "<" not in left and not re.search(r"\[[^\]]*\]\((?!https://arxiv\.org)", left)


@pytest.mark.parametrize("text", EVIL, ids=repr)
def test_words_in_markdown_stay_words(text):
    assert not {"<", "["} & {*plain(text)} and "\n" not in plain(text)
    ticks = code(text).split(" ")[0] if "`" in text else "`"
    assert code(text).startswith(ticks) and code(text).count(ticks) == 2
    card = fenced(f"a\n{text}\n", "yaml").split("\n")
    assert card.count(card[0].removesuffix("yaml")) == 1 and card[-1] == card[0].removesuffix("yaml")


def test_a_token_is_neither_kept_nor_logged(lab, caplog, monkeypatch, tmp_path):
    from mergelab.errors import MergeError
    from mergelab.page.push import pushed
    from mergelab.page.telling import told

    caplog.set_level(logging.DEBUG)
    shown = []

    class Refusing:
        def __init__(self, token):
            self.token = token

        def create_repo(self, *given, **more):
            raise ValueError(f"refused {self.token}")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
    lab.visitor = str
    from making import finished

    from mergelab import Expert, Recipe

    run = finished(lab.merge(Recipe("numbers/base", (Expert("numbers/french"), Expert("numbers/sort")), "linear")))
    with pytest.raises(MergeError) as caught:
        pushed(lab, run.folder.parent.name, "me/x", gr.OAuthToken(TOKEN, "write-repos", 0))
    shown.append(str(caught.value))
    monkeypatch.setattr(lab, "push", lambda *given: 1 / 0)
    with pytest.raises(gr.Error) as fault:
        told(lambda: pushed(lab, run.folder.parent.name, "me/x", gr.OAuthToken(TOKEN, "write-repos", 0)))()
    shown.append(str(fault.value))
    kept = [path for path in lab.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert "fault of mergelab" in shown[1] and "ZeroDivisionError" in caplog.text
    assert TOKEN not in caplog.text + "".join(shown) and not kept


def test_hostile_names_run_nothing_in_the_page(evil, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "The browser tests need Chromium; `make test` installs it."
    alone = Lab(tmp_path / "mine", device="cpu")
    alone.folder.mkdir()
    _, address, _ = launch(alone, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    foreign, dialogs = [], []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda asked: foreign.append(asked.url) if address.split("/")[2] not in asked.url else None)
        page.goto(address)
        page.wait_for_selector("#lines .ml-plot[data-draws]")
        page.get_by_role("button", name="Recipe as YAML").click()
        page.locator(".cm-content").first.click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(recipe_of(*evil).to_yaml())
        page.get_by_role("button", name="Apply this text").click()
        playwright.expect(page.locator("#experts")).to_contain_text("onerror")
        page.get_by_role("button", name="Analyse").press("Enter")
        playwright.expect(page.locator("#heat .ytick text").first).to_contain_text("window.hit", timeout=60_000)
        page.locator("#merge").press("Enter")  # a click could miss it while the column above still grows
        playwright.expect(page.locator("#merged-about")).to_contain_text("onerror", timeout=60_000)
        for tab in page.get_by_role("tab").all():
            tab.click()
        page.wait_for_timeout(300)
        assert page.evaluate("window.hit") is None
        assert page.locator("img[src='x'], a[href^='javascript:']").count() == 0
        (file,) = alone.folder.rglob("LICENSE.html")
        answer = httpx.get(f"{address}gradio_api/file={file}")
        browser.close()
    assert answer.headers["content-disposition"].startswith("attachment")
    assert dialogs == [] and [u for u in foreign if not u.startswith(("data:", "blob:"))] == []
    gr.close_all(verbose=False)
