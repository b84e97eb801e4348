"""The Repair tab in a real browser: its story is there at once, runs with progress, stops, and is taken home."""

import re
import time

import pytest
from playwright.sync_api import expect
from test_page import browser, choose, lab, opened, page, url  # noqa: F401  fixtures

from mergelab.lab import repair as lab_repair


@pytest.fixture
def tab(page):  # noqa: F811
    """A page with the Repair tab open and drawn."""
    page.get_by_role("tab", name="Repair").click()
    page.wait_for_selector("#dots .ml-plot[data-draws]")
    page.wait_for_selector("#variance .ml-plot[data-draws]")
    return page


def label(tab, panel):
    return tab.locator(f"{panel} .ml-plot").get_attribute("aria-label")


def shares(alt, kind):
    """The percentages that an alternative text gives for one kind of bar."""
    return [int(share) for share in re.findall(rf"(?:%,|:) {kind} (\d+)%", alt)]


def ran(tab):
    """Press Run, and wait for the end of this very run."""
    tab.evaluate("document.querySelector('#repair-status .ml-status').className = ''")
    tab.click("#repair")
    expect(tab.locator("#repair-status .ml-status.good")).to_contain_text("tasks repaired", timeout=300_000)


def test_the_story_of_two_unrelated_nets_is_there_before_anything_is_run(tab):
    assert label(tab, "#variance").startswith("Variance from embedder")
    assert "repaired at 1" in label(tab, "#variance")
    assert "Objective over" in label(tab, "#matching") and "Heatmap of log2" in label(tab, "#site-heat")
    expect(tab.locator("#repair-verdict")).to_contain_text("the repair's alone")
    for look in ("#variance", "#repaired-scores", "#matching", "#site-heat", "#dots"):
        assert tab.locator(f":has(> {look}) .ml-look, {look} + .ml-look").count() >= 1, look


def test_a_run_shows_its_progress_ends_better_than_it_began_and_can_be_taken_home(tab):
    tab.evaluate("document.querySelector('#repair-status .ml-status').className = ''")
    tab.click("#repair")
    expect(tab.locator("#repair-status")).to_contain_text(re.compile(r"Repairing: \d+ of 13"))
    expect(tab.locator("#repair-status .ml-status.good")).to_contain_text("2 tasks repaired", timeout=300_000)
    alt = label(tab, "#repaired-scores")
    before, after = shares(alt, "aligned"), shares(alt, "repaired")
    assert len(before) == 2 and sum(after) > sum(before) + 50, alt
    tab.get_by_role("button", name="Take the repaired models home").click()
    tab.click("#make-sidecars")
    expect(tab.locator("#repaired-files")).to_contain_text("sidecars", timeout=120_000)
    tab.get_by_role("button", name="All numbers").click()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Scores (CSV)").click()
    assert download.value.suggested_filename == "mergelab-repair-scores.csv"


def test_a_click_and_the_keyboard_open_a_site(tab):
    tab.locator("#site-heat").scroll_into_view_if_needed()
    box = tab.locator("#site-heat .nsewdrag").first.bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 0.5 / 7, box["y"] + box["height"] / 4)
    expect(tab.locator("#site input")).to_have_value("embedder")
    expect(tab.locator("#dots .ml-plot")).to_have_attribute("aria-label", re.compile("embedder"))
    choose(tab, "#site", "1.0 shortcut")
    expect(tab.locator("#dots .ml-plot")).to_have_attribute("aria-label", re.compile("shortcut"))


def test_a_run_can_be_stopped_and_keeps_nothing(tab, lab, monkeypatch):  # noqa: F811
    slow = lab_repair.stage_of
    monkeypatch.setattr(lab_repair, "stage_of", lambda *given: time.sleep(2) or slow(*given))
    kept = list(lab.folder.glob("aligned-*"))
    tab.click("#repair")
    expect(tab.locator("#repair-status progress")).to_be_visible()
    tab.click("#stop-repair")
    expect(tab.locator("#repair-status")).to_contain_text("Stopped")
    for _ in range(100):
        if list(lab.folder.glob("aligned-*")) == kept:
            break
        time.sleep(0.1)
    assert list(lab.folder.glob("aligned-*")) == kept


def test_a_mistake_is_told_in_one_sentence_and_the_pictures_stay(tab):
    before = label(tab, "#variance")
    tab.get_by_role("button", name="More settings, and your own prompts").click()
    choose(tab, "#story", "Numbers: four experts of one base")
    tab.locator("#own-prompts textarea").fill("french: 12 =")
    tab.click("#repair")
    expect(tab.locator("#repair-status .ml-status.bad")).to_contain_text("at least 4")
    assert label(tab, "#variance") == before


def test_nothing_overflows_on_a_phone(page, url):  # noqa: F811
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, url)
    page.locator(".overflow-menu > button").click()  # the bar shows as many tabs as fit, the others behind its dots
    page.locator(".overflow-dropdown").get_by_text("Repair").click()
    page.wait_for_selector("#dots .ml-plot[data-draws]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_merge_is_scored_and_prompted_repaired_for_a_task(page):  # noqa: F811
    page.get_by_role("tab", name="Merge", exact=True).click()
    page.locator("#repaired-too input").check()
    page.evaluate("document.querySelector('#status .ml-status').className = ''")
    page.click("#merge")
    expect(page.locator("#status .ml-status.good")).to_contain_text("Merged 38 tensors", timeout=300_000)
    alt = label(page, "#scores")
    assert sum(shares(alt, "repaired")) >= sum(shares(alt, "merged"))
    page.get_by_role("tab", name="Try prompts").click()
    choose(page, "#repaired-for", "numbers/english")
    page.locator("#prompt textarea, #prompt input").first.fill("english: 21 =")
    page.click("#ask")
    expect(page.locator("#answer-repaired textarea")).to_have_value("twenty-one")
