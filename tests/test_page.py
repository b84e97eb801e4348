"""The page in a real browser: what a newcomer does in the first minute, and what goes wrong for them."""

import re
import shutil
import socket
import time

import gradio as gr
import pytest
from playwright.sync_api import expect, sync_playwright

from mergelab import METHODS
from mergelab.lab.lab import Lab
from mergelab.page import launch
from mergelab.page.form import FAMILIES
from mergelab.planning.plan import Plan

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("runs"), device="cpu")


@pytest.fixture(scope="module")
def url(lab):
    with socket.socket() as free:  # of its own: another page may be open on the usual one
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, address, _ = launch(lab, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=port)
    yield address
    gr.close_all(verbose=False)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "The browser tests need Chromium; `make test` installs it."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """A page that has drawn its spectra; at the end, nothing was asked of a foreign host and nothing broke in it."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    page.faults, page.asked, page.left = [], [], False
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda line: page.faults.append(line.text) if is_fault(line, page.left) else None)
    page.on("request", lambda request: page.asked.append(request.url))
    opened(page, url)
    yield page
    hosts = {address.split("/")[2] for address in page.asked if address.startswith("http")}
    faults, page.left = page.faults, True
    page.close()
    assert hosts == {url.split("/")[2]} and faults == []


def is_fault(line, left):
    """An error in the browser's log; not, while a page is `left` for another, that its own requests end with it."""
    ended = any(way in line.text for way in ("AbortError: signal is aborted", "Connection errored out"))
    return line.type == "error" and not (left and ended)


def opened(page, url, query=""):
    page.left = page.url != "about:blank"
    page.goto(f"{url}{query}")
    page.left = False
    page.wait_for_selector("#lines .ml-plot[data-draws]")
    page.wait_for_selector("#heat .ml-plot[data-draws]")


def cells(page):
    """The numbers in the heatmap's cells."""
    return page.locator("#heat .heatmaplayer text").all_text_contents()


def choose(page, box, option):
    page.locator(f"{box} input").first.click()
    page.get_by_role("option", name=option, exact=True).click()


def merged(page):
    """Press Merge, and wait for the end of this very merge."""
    page.evaluate("document.querySelector('#status .ml-status').className = ''")
    page.click("#merge")
    expect(page.locator("#status .ml-status.good")).to_contain_text("Merged 38 tensors")


def test_the_slider_moves_both_pictures_and_asks_the_server_nothing(page):
    before, asked = cells(page), len(page.asked)
    slider = page.get_by_role("slider", name="η (eta)").first
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#heat .ml-plot")).to_have_attribute("data-eta", "60")
    expect(page.locator("#lines .ml-plot")).to_have_attribute("data-eta", "60")
    after = cells(page)
    assert len(before) == len(after) == 28 * 4
    assert all(int(new) > int(old) for old, new in zip(before, after))
    expect(page.locator("#readout")).to_contain_text(
        re.compile(r"At η = 60 %, STAR keeps \d+ to \d+ of 128 directions")
    )
    field = page.locator("#knob-star-eta input[type=number]")
    for half_typed in ("-30", "600", ""):
        field.fill(half_typed)
        page.wait_for_timeout(100)
        assert cells(page) == after
    field.press("Tab")
    expect(field).to_have_value("60")  # emptied: what it was, not the lowest number
    assert page.asked[asked:] == []


def test_a_click_on_the_heatmap_opens_that_module_and_so_does_the_keyboard(page):
    box = page.locator("#heat .nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 7.5 / 28, box["y"] + box["height"] / 2)
    field = page.locator("#module input")
    expect(field).to_have_value("1 down · 128×384")
    said = "Singular values of model.layers.1.mlp.down_proj.weight for 4 experts, and their running sum."
    expect(page.locator("#lines .ml-plot")).to_have_attribute("aria-label", said)
    field.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(field).not_to_have_value("1 down · 128×384")


def test_a_module_gets_an_eta_of_its_own_which_the_slider_leaves_alone(page):
    box = page.locator("#heat .nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 7.5 / 28, box["y"] + box["height"] / 2)
    expect(page.locator("#module input")).to_have_value("1 down · 128×384")
    page.get_by_role("button", name="Give this module").click()
    value = page.locator("#override-value textarea, #override-value input").first
    expect(value).to_be_visible()
    page.wait_for_timeout(500)  # the row is new: what is typed into it before it listens is lost
    value.fill("100")
    value.press("Tab")
    expect(value).to_have_value("100")
    page.click("#override-module")
    expect(page.locator("#overrides")).to_contain_text("eta = 100 in model.layers.1.mlp.down_proj.weight")
    expect(page.locator("#readout")).to_contain_text("The η of 1 of 28 modules is their own")
    before = cells(page)
    slider = page.get_by_role("slider", name="η (eta)").first
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#heat .ml-plot")).to_have_attribute("data-eta", "60")
    after = cells(page)
    assert [i for i, (old, new) in enumerate(zip(before, after)) if old == new] == [7, 35, 63, 91]
    page.get_by_role("button", name="Recipe as YAML").click()
    expect(page.locator(".cm-content").first).to_contain_text("filter: model.layers.1.mlp.down_proj.weight")


def test_the_merged_model_is_scored_hashed_and_answers_what_its_experts_could(page, lab):
    merged(page)
    run = list(lab.runs.values())[-1]
    expect(page.locator("#merged-about")).to_contain_text(run.sha256)
    label = page.locator("#scores .ml-plot").get_attribute("aria-label")
    assert label.startswith("french: base") and "spanish" in label
    expect(page.locator("#history")).to_contain_text(run.sha256[:12])
    page.get_by_role("button", name="Report: a row per module and expert").click()
    expect(page.locator("#merged-table")).to_contain_text("model.layers.0.mlp.down_proj.weight")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith(".zip")
    page.get_by_role("tab", name="Try prompts").click()
    page.locator("#bundled-prompts").get_by_text("morse: 89 =").click()
    expect(page.locator("#ask-status")).to_contain_text("morse is not part of this merge")
    page.locator("#bundled-prompts").get_by_text("english: 675 =").click()
    expect(page.locator("#expert input")).to_have_value("numbers/english")
    expect(page.locator("#ask-status")).to_contain_text("Right answer: six hundred and seventy-five")
    expect(page.locator("#answer-merged")).to_contain_text("Merged: STAR · right")
    expect(page.locator("#answer-merged textarea")).to_have_value("six hundred and seventy-five")
    expect(page.locator("#which")).to_contain_text(run.sha256[:16])


def test_a_merge_shows_its_progress_and_can_be_stopped(page, lab, monkeypatch):
    read = Plan.layer
    monkeypatch.setattr(Plan, "layer", lambda *given: time.sleep(0.3) or read(*given))
    before = list(lab.runs)
    page.click("#merge")
    expect(page.locator("#status progress")).to_be_visible()
    expect(page.locator("#status")).to_contain_text(re.compile(r"Merging: \d+ of 38"))
    expect(page.locator("#status")).to_be_in_viewport(ratio=1)
    page.get_by_role("tab", name="Try prompts").click()
    page.click("#ask")
    expect(page.locator("#ask-status")).to_contain_text("Your other job is still running")
    page.click("#stop-ask")
    page.get_by_role("tab", name="Spectra").click()
    page.mouse.move(900, 600)
    page.mouse.wheel(0, 250)
    page.wait_for_function("scrollY > 200")
    for part in ("#method", "#stop", "#status"):  # the recipe, its buttons and its status stay beside a long tab
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped")
    time.sleep(1)
    assert list(lab.runs) == before
    assert not list(lab.folder.rglob("*.partial*"))


def test_a_second_visitor_hears_who_is_before_them_may_stop_and_goes_on_when_the_first_closes(
    page, browser, url, monkeypatch
):
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "1")
    read, slow = Plan.layer, [True]
    monkeypatch.setattr(Plan, "layer", lambda *given: time.sleep(0.3 * slow[0]) or read(*given))
    other = browser.new_page(viewport={"width": 1440, "height": 900})
    opened(other, url)
    other.click("#merge")
    expect(other.locator("#status")).to_contain_text(re.compile(r"Merging: \d+ of 38"))
    page.click("#merge")
    expect(page.locator("#status")).to_contain_text("1 other before you")
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped")
    expect(other.locator("#status")).to_contain_text(re.compile(r"Merging: \d+ of 38"))
    page.get_by_role("tab", name="Try prompts").click()
    page.click("#ask")
    expect(page.locator("#ask-status")).to_contain_text("1 other before you")
    other.close()
    expect(page.locator("#ask-status")).not_to_contain_text("before you")
    expect(page.locator("#answer-expert textarea")).to_have_value("trente-quatre")
    slow[0] = False


def test_another_method_brings_its_own_knobs_pictures_and_numbers(page):
    choose(page, "#method", "DRM-H · spectral")
    expect(page.get_by_role("slider", name="drop").first).to_be_visible()
    expect(page.locator("#knob-star-eta")).to_be_hidden()
    expect(page.locator("#joint .ml-plot[data-draws]")).to_be_visible()
    expect(page.locator("#readout")).to_contain_text("share of energy")
    choose(page, "#fact", "sign conflicts")
    expect(page.locator("#readout")).to_contain_text("opposite directions")
    expect(page.locator("#look-heat")).to_contain_text("Number and colour: sign conflicts")
    expect(page.locator("#look-lines")).not_to_contain_text("η")
    choose(page, "#method", "STAR · spectral")  # the picture of η comes back with STAR, not the fact of another method
    expect(page.locator("#readout")).to_contain_text("At η = 40 %")
    expect(page.locator("#fact input")).to_have_value("rank kept")


def test_a_mistake_is_told_in_one_sentence_and_nothing_is_lost(page):
    page.locator("#experts input").first.fill("numbers/frnch")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Analyse").click()
    status = page.locator("#status .ml-status.bad")
    expect(status).to_contain_text("numbers/french")
    assert len(cells(page)) == 28 * 4
    page.get_by_role("button", name="Recipe as YAML").click()
    page.locator(".cm-content").first.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("merge_method: strar\nbase_model: numbers/base\nmodels: [numbers/sort, numbers/roman]\n")
    page.get_by_role("button", name="Apply this text").click()
    expect(page.locator(".toast-message-text")).to_contain_text("There is no merge method 'strar'")
    expect(page.locator("#method input").first).to_be_visible()  # a tall recipe column scrolls, it does not wrap
    box, side = page.locator("#method").bounding_box(), page.locator("#side").bounding_box()
    assert side["x"] <= box["x"] and box["x"] + box["width"] <= side["x"] + side["width"]


def test_the_recipe_travels_as_text_and_back(page):
    page.get_by_role("button", name="Recipe as YAML").click()
    editor = page.locator(".cm-content").first
    expect(editor).to_contain_text("merge_method: star")
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(
        "merge_method: ties\nbase_model: numbers/base\nmodels:\n"
        "- model: numbers/sort\n- model: numbers/roman\nparameters:\n  density: 0.5\n"
    )
    page.get_by_role("button", name="Apply this text").click()
    expect(page.locator("#method input").first).to_have_value("TIES · entries")
    expect(page.locator("#experts")).to_contain_text("numbers/roman")
    expect(page.get_by_role("slider", name="density").first).to_have_value("0.5")


def test_every_method_is_in_one_family_of_the_dropdown():
    names = " ".join(FAMILIES.values()).split()
    assert sorted(names) == sorted(METHODS)


def test_a_step_after_the_merge_and_a_choice_have_their_widgets_and_travel_in_the_recipe(page):
    choose(page, "#method", "Core space · spectral")
    choose(page, "#knob-core_space-inner", "iso_c")
    page.get_by_role("button", name="More settings").click()
    expect(page.locator("#knob-svc-alpha")).to_be_hidden()
    page.locator("#then").get_by_label("SVC").check()
    expect(page.locator("#knob-svc-alpha").first).to_be_visible()
    page.get_by_role("button", name="Recipe as YAML").click()
    editor = page.locator(".cm-content").first
    for line in ("merge_method: core_space", "inner: iso_c", "then:", "svc:", "alpha: 1"):
        expect(editor).to_contain_text(line)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_take_the_colours_of_the_theme(page, url, theme):
    opened(page, url, f"?__theme={theme}")
    fill = page.locator("#heat .xtick text").first.evaluate("node => getComputedStyle(node).fill")
    lightness = sum(map(int, fill.removeprefix("rgb(").removesuffix(")").split(",")[:3])) / 3
    assert (lightness > 160) == (theme == "dark")


def test_nothing_overflows_on_a_phone_and_the_two_plots_stand_one_above_the_other(page, url):
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    first, second = (page.locator(f"#lines .{axis}title").count() for axis in ("x", "x2"))
    assert (first, second) == (0, 1)
    assert page.locator("#heat .heatmaplayer text").count() == 0
    page.locator("#lines").evaluate("node => node.scrollIntoView()")
    slider, picture = (page.locator(name).bounding_box() for name in ("#knob-star-eta", "#lines"))
    assert slider["y"] == 0 and slider["height"] <= picture["y"], "the slider goes along, above the pictures"


def test_machines_use_the_typed_endpoints(url):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False)
    recipe = "{merge_method: star, base_model: numbers/base, models: [{model: numbers/sort}, {model: numbers/roman}]}"
    report = client.predict(recipe=recipe, api_name="/inspect")
    assert report["experts"] == ["sort", "roman"]
    assert client.predict(recipe=recipe, api_name="/merge")["sha256"].keys() == {"model.safetensors"}
    with pytest.raises(AppError, match="Did you mean 'star'"):
        client.predict(recipe=recipe.replace("star", "strar"), api_name="/inspect")
    told = client.predict(recipe=recipe, samples=8, api_name="/repair")
    assert [report["task"] for report in told["reports"]] == ["sort", "roman"]
    with pytest.raises(AppError, match="samples"):
        client.predict(recipe=recipe, samples=2, api_name="/repair")
    verbs = {"/check", "/inspect", "/merge", "/sweep", "/repair", "/generate", "/list_methods"}
    assert verbs == set(client.view_api(return_format="dict")["named_endpoints"])


def test_emptied_and_unknown_experts_are_told_at_once_and_the_old_pictures_fade(page):
    page.locator("#experts .remove-all").click()
    expect(page.locator("#status .bad")).to_contain_text("No expert is chosen")
    expect(page.locator("#heat .ml-plot")).to_have_css("opacity", "0.35")
    page.locator("#experts input").fill("numbers/frensh")
    page.keyboard.press("Enter")
    expect(page.locator("#status .bad")).to_contain_text("Did you mean 'numbers/french'?")
    page.locator("#experts .remove-all").click()
    page.locator("#experts input").fill("numbers/french")
    page.get_by_role("option", name="numbers/french", exact=True).click()
    expect(page.locator("#status .good")).to_contain_text("28 matrices of 1 expert analysed")
    expect(page.locator("#heat .ml-plot")).to_have_css("opacity", "1")
