"""Scores, sweep, comparison and history on the page, in a real browser, by mouse and by keyboard."""

import re
import time

from playwright.sync_api import expect
from test_page import browser as browser
from test_page import choose, opened
from test_page import lab as lab
from test_page import page as page
from test_page import url as url

from mergelab.planning.plan import Plan


def go(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def pressed(page, button, ending=".good"):
    """Press a button, and wait for the last word of this very job, which stands beside it."""
    line = "#status" if button in ("#merge", "#suggest") else f"{button}-status"
    page.evaluate(f"document.querySelector('{line} .ml-status').className = ''")
    page.click(button)
    status = page.locator(f"{line} .ml-status{ending}")
    expect(status).to_be_visible()
    return status.text_content()


def drawn(page, panel, count=1):
    """Wait until a panel has drawn its figure; its alternative text."""
    page.wait_for_function(f"Number(document.querySelector('{panel} .ml-plot')?.dataset.draws || 0) >= {count}")
    return page.locator(f"{panel} .ml-plot").get_attribute("aria-label")


def own(page, text):
    go(page, "Scores")
    page.get_by_role("radio", name="my own prompts").check()
    page.locator("#own-text textarea").fill(text)


def rivals(page, *titles):
    """Leave these methods alone in the list of those that are scored beside the form's."""
    page.locator("#rivals .remove-all").click()
    for title in titles:
        page.locator("#rivals input").fill(title)
        page.get_by_role("option", name=title, exact=True).click()
    page.keyboard.press("Escape")


def test_the_tabs_open_with_scores_and_a_sweep_that_were_made_in_advance(page):
    go(page, "Scores")
    assert "STAR: french" in drawn(page, "#board-grid")
    expect(page.locator("#board-about")).to_contain_text("Best by task: french ")
    go(page, "Sweep")
    assert drawn(page, "#curves").startswith("η 10: ")
    expect(page.locator("#verdict")).to_contain_text("Example, made in advance. Best of 10 points")
    expect(page.locator(".ml-other")).to_have_count(0)
    choose(page, "#method", "Average · entries")  # what is shown is not of this recipe, and says so
    expect(page.locator(".ml-other:visible")).to_contain_text("another recipe than the one in the form. Press Sweep")
    expect(page.locator("#curves .ml-plot")).to_have_css("opacity", "0.35")
    choose(page, "#method", "STAR · spectral")
    expect(page.locator(".ml-other")).to_have_count(0)
    expect(page.locator("#knob input")).to_have_value("η")


def test_the_scoreboard_scores_base_experts_the_recipe_and_other_methods_and_is_taken_home(page):
    go(page, "Scores")
    rivals(page, "Average")
    assert "7 models scored on 4 tasks" in pressed(page, "#score")
    expect(page.locator("#board .ml-plot")).to_have_attribute("aria-label", re.compile(r"mean: base .*, STAR \d"))
    expect(page.locator("#board-grid .ml-plot")).to_have_attribute("aria-label", re.compile(r"; Average: .*mean"))
    expect(page.locator("#board-about")).to_contain_text(re.compile(r"Normalised average.*STAR \d+\.\d%"))
    page.get_by_role("button", name="All numbers").locator("visible=true").click()
    with page.expect_download() as download:
        page.click("#board-csv")
    assert download.value.suggested_filename == "mergelab-scores.csv"


def test_own_prompts_are_scored_and_a_mistake_in_them_is_told_with_its_line(page):
    own(page, "english: 21 = => twenty-one\nenglish: 40 = forty")
    assert "Line 2 is only a text, with no prompt: 'english: 40 = forty'" in pressed(page, "#score", ".bad")
    page.locator("#own-text textarea").fill("english: 21 = => twenty-one => numbers\nenglish: 40 = => forty => numbers")
    rivals(page)
    assert "on 1 task, 12 answers" in pressed(page, "#score")
    assert "numbers: base" in drawn(page, "#board")


def test_a_point_of_a_sweep_becomes_the_recipe_by_keyboard_and_by_a_click(page):
    own(page, "english: 21 = => twenty-one\nfrench: 21 = => vingt et un")
    go(page, "Sweep")
    page.locator("#sweep-points input").fill("3")
    choose(page, "#sweep-by", "what the Scores tab asks")
    assert pressed(page, "#sweep").strip() == "3 points swept."
    assert drawn(page, "#curves").startswith("η 10: ")
    expect(page.locator("#verdict")).to_contain_text("Best of 3 points on the test prompts")
    choose(page, "#point", re.compile("^η 55"))
    page.locator("#use-point").focus()
    page.keyboard.press("Enter")
    eta = page.get_by_role("slider", name="η (eta)").first
    expect(eta).to_have_value("55")
    page.locator("#curves .trace.scatter .points path").last.click(force=True)
    expect(eta).to_have_value("100")


def test_the_number_of_experts_is_a_knob_and_geometry_needs_no_score(page):
    go(page, "Sweep")
    choose(page, "#knob", "number of experts")
    expect(page.locator("#sweep-to input")).to_have_value("4")
    choose(page, "#sweep-by", "nothing: geometry alone")
    pressed(page, "#sweep")
    assert drawn(page, "#curves") == "The geometry of the merged change against experts, at 3 points."


def test_another_method_brings_its_own_knobs_to_the_sweep(page):
    go(page, "Sweep")
    choose(page, "#method", re.compile("^DRM-H ·"))
    expect(page.locator("#knob input")).to_have_value("drop")
    expect(page.locator("#sweep-to input")).to_have_value("0.9")


def test_a_sweep_shows_its_progress_and_can_be_stopped(page, lab, monkeypatch):
    read = Plan.layer
    monkeypatch.setattr(Plan, "layer", lambda *given: time.sleep(0.1) or read(*given))
    go(page, "Sweep")
    page.click("#sweep")
    expect(page.locator("#sweep-status progress")).to_be_visible()
    expect(page.locator("#verdict")).to_contain_text(re.compile(r"\d of 10 points\. Best of \d point"))
    page.click("#stop-sweep")
    expect(page.locator("#sweep-status")).to_contain_text("Stopped. The points that it had finished are shown.")
    count = re.search(r"(\d) of 10 points", page.locator("#verdict").text_content())[1]  # what is drawn is what is told
    assert page.evaluate("document.querySelector('#curves .ml-plot').data.at(-1).x.length") == int(count)


def test_eta_is_suggested_from_the_spectra_and_set(page):
    expect(page.locator("#readout")).to_contain_text(re.compile(r"The spectra suggest η = \d+"))
    suggested = re.search(r"suggest η = (\d+)", page.locator("#readout").text_content())[1]
    assert f"η = {suggested}," in pressed(page, "#suggest")
    expect(page.get_by_role("slider", name="η (eta)").first).to_have_value(suggested)
    expect(page.locator("#heat .ml-plot")).to_have_attribute("data-eta", suggested)


def test_two_merges_are_compared_asked_and_gone_back_to(page):
    pressed(page, "#merge")
    choose(page, "#method", re.compile("^Average"))
    expect(page.locator("#status")).to_contain_text("analysed")
    own(page, "english: 21 = => twenty-one")
    go(page, "Compare")
    expect(page.locator("#compare-b input")).to_have_value(re.compile("^the plain average"))
    choose(page, "#compare-b", re.compile("^1. STAR"))
    assert "cosine" in pressed(page, "#compare")
    assert drawn(page, "#difference").startswith("distance of the two changes")
    assert "Singular values of the two changes" in drawn(page, "#both-spectra")
    assert "A " in drawn(page, "#both-scores")
    page.locator("#difference .nsewdrag").first.click()
    page.get_by_role("radio", name="cosine").check()
    expect(page.locator("#difference .ml-plot")).to_have_attribute("aria-label", re.compile("^cosine of the two"))
    page.locator("#ask-both-prompt textarea, #ask-both-prompt input").first.fill("english: 21 =")
    page.click("#ask-both")
    for side in "ab":
        expect(page.locator(f"#both-{side} textarea")).to_have_value("twenty-one")
    go(page, "Merge")
    page.locator("#load-past").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#method input").first).to_have_value(re.compile("^STAR"))


def test_compare_opens_with_an_example_that_can_be_explored_and_asked(page):
    go(page, "Compare")
    assert "of the two changes: 0." in drawn(page, "#difference")
    expect(page.locator("#compared")).to_contain_text("Example, made in advance")
    page.get_by_role("radio", name="cosine").check()
    expect(page.locator("#difference .ml-plot")).to_have_attribute("aria-label", re.compile("^cosine of the two"))
    choose(page, "#compare-module", re.compile("layers.0.self_attn.q_proj"))
    expect(page.locator("#both-spectra .ml-plot")).to_have_attribute("aria-label", re.compile("layers.0.self_attn.q"))
    page.click("#ask-both")
    for side in "ab":
        expect(page.locator(f"#both-{side} textarea")).not_to_have_value("")
    go(page, "Spectra")
    choose(page, "#method", re.compile("^Average"))
    go(page, "Compare")
    expect(page.get_by_text("This is of another recipe than the one in the form. Press Compare")).to_be_visible()


def test_comparing_a_recipe_with_itself_is_refused_by_a_sentence(page):
    choose(page, "#method", re.compile("^Average"))
    go(page, "Compare")
    assert "A and B are the same recipe" in pressed(page, "#compare", ".bad")


def test_nothing_overflows_on_a_phone_even_after_a_sweep(page, url):
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, url)
    for tab in ("Scores", "Compare", "Sweep"):
        shown = page.get_by_role("tab", name=tab, exact=True)
        if not shown.count():
            page.get_by_label("More tabs").click()
            shown = page.locator(".overflow-dropdown button", has_text=tab)
        shown.click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page.locator("#sweep-points input").fill("2")
    choose(page, "#sweep-by", "nothing: geometry alone")
    pressed(page, "#sweep")
    drawn(page, "#curves")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
