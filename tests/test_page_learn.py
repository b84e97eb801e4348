"""The Learn tab in a real browser: turned by buttons, keys and lists; a matrix to touch; recipes that arrive."""

import json
import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_page import browser, choose, lab, opened, page, url  # noqa: F401  fixtures

from mergelab.lessons.course import CHAPTERS, LESSONS
from mergelab.method import METHODS
from mergelab.page.learn_tab import TABS

ORDER = list(LESSONS)


@pytest.fixture
def tab(page):  # noqa: F811
    """A page with the Learn tab open and its first picture drawn."""
    page.get_by_role("tab", name="Learn").click()
    page.wait_for_selector("#learn-picture .ml-plot[data-draws]")
    return page


def shows(page, address):  # noqa: F811
    """Wait until a lesson is shown."""
    expect(page.locator("#learn-words h2")).to_have_text(LESSONS[address].title)


def at(page, title):  # noqa: F811
    """Go to a lesson by the list of all of them."""
    page.locator("#learn-step input").first.click()
    page.get_by_role("option", name=re.compile(rf"\d\.\d {re.escape(title)}$")).click()


def star(matrix, eta, rescale):
    """What STAR makes of one matrix: singular values, rank, gain, result and the two errors, by torch."""
    tau = torch.tensor(matrix, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(tau)
    s = torch.where(s > 1e-7 * s[0], s, 0)
    if not s.sum():
        return s, 0, 1.0, torch.zeros_like(tau), 0.0, 0.0
    r = next(r for r in range(1, 5) if s[:r].sum() >= eta / 100 * s.sum() * (1 - 1e-12) or r == 4)
    gain, cut = float(s.sum() / s[:r].sum()), (u[:, :r] * s[:r]) @ vt[:r]
    result = (gain if rescale else 1) * cut
    return s, r, gain, result, float((result - tau).norm() / tau.norm()), float((cut - tau).norm() / tau.norm())


def agrees(found, matrix, eta, rescale):
    values, rank, gain, result, error, bare = star(matrix, eta, rescale)
    assert found["rank"] == rank
    assert found["sigmas"] == pytest.approx(values.tolist(), abs=1e-9)
    assert (found["gain"], found["error"], found["bare"]) == pytest.approx((gain, error, bare), abs=1e-9)
    assert sum(found["result"], []) == pytest.approx(result.flatten().tolist(), abs=1e-9)


def test_the_path_is_walked_by_buttons_keys_chapters_and_the_list(tab):
    expect(tab.locator("#learn-back")).to_be_disabled()
    tab.click("#learn-next")
    shows(tab, ORDER[1])
    expect(tab.locator("#learn-progress")).to_contain_text(f"2 of {len(ORDER)} in all")
    tab.keyboard.press("ArrowRight")
    shows(tab, ORDER[2])
    tab.keyboard.press("ArrowLeft")
    shows(tab, ORDER[1])
    tab.click("#learn-back")
    shows(tab, ORDER[0])
    for chapter in CHAPTERS[1:]:
        tab.locator("#learn-chapters").get_by_text(chapter.title).click()
        shows(tab, f"{chapter.name}-1")
    at(tab, LESSONS[ORDER[-1]].title)
    shows(tab, ORDER[-1])
    expect(tab.locator("#learn-next")).to_be_disabled()
    expect(tab.locator("#learn-chapters input:checked")).to_have_value(CHAPTERS[-1].name)


def test_arrow_keys_stay_with_the_field_that_has_them(tab):
    tab.locator("#learn-chapters").get_by_text(CHAPTERS[2].title).click()
    shows(tab, "truncation-1")
    tab.locator("[data-part=eta]").focus()
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("[data-part=eta-said]")).to_have_text("η = 41 %")
    shows(tab, "truncation-1")


def test_every_step_draws_its_picture_says_its_numbers_and_moves_nothing_but_itself(tab):
    place, formulas = tab.locator("#learn-next").bounding_box(), 0
    for address in ORDER:
        shows(tab, address)
        lesson = LESSONS[address]
        expect(tab.locator("#learn-said")).to_have_text(lesson.said.replace("*", ""))
        if lesson.drawn:
            alt = lesson.figure()["layout"]["meta"]["alt"]
            expect(tab.locator("#learn-picture .ml-plot")).to_have_attribute("aria-label", alt)
        assert "$" not in tab.locator("#learn-words").inner_text()
        formulas += tab.locator("#learn-words .katex").count()
        assert tab.locator("#learn-next").bounding_box() == place
        if address != ORDER[-1]:
            tab.click("#learn-next")
    assert formulas == sum(lesson.words.count("$") // 2 for lesson in LESSONS.values())


def test_the_small_matrix_is_decomposed_cut_and_scaled_as_torch_does_it(tab):
    tab.locator("#learn-chapters").get_by_text(CHAPTERS[2].title).click()
    tab.wait_for_selector(".ml-touch[data-found]")
    draw = torch.Generator().manual_seed(1)
    cases = [torch.randn(4, 4, generator=draw, dtype=torch.float64) for _ in range(30)]
    cases += [torch.outer(case[0], case[1]) for case in cases[:5]] + [case[:2].T @ case[2:] for case in cases[:5]]
    cases += [torch.zeros(4, 4), torch.eye(4), torch.eye(4).flip(0) * 3, torch.ones(4, 4) * -2]
    for i, case in enumerate(cases):
        matrix, eta, rescale = case.tolist(), (1, 17, 40, 63, 100)[i % 5], i % 2 == 0
        agrees(tab.evaluate("given => mergelabLearn.star(...given)", [matrix, eta, rescale]), matrix, eta, rescale)


def test_a_touched_number_the_slider_and_the_switch_change_all_that_is_shown(tab):
    tab.locator("#learn-chapters").get_by_text(CHAPTERS[2].title).click()
    root = tab.locator(".ml-touch[data-found]")
    tab.get_by_label("τ, row 1, column 1").fill("-2.5")
    tab.locator("[data-part=eta]").fill("70")
    tab.locator("[data-part=rescale]").uncheck()
    found = json.loads(root.get_attribute("data-found"))
    assert found["matrix"][0][0] == -2.5 and found["eta"] == 70
    agrees(found, found["matrix"], 70, False)
    shown = [float(text) for text in tab.locator("[data-part=result] span").all_text_contents()]
    assert shown == pytest.approx(sum(found["result"], []), abs=0.0051)
    assert tab.locator("[data-part=bars] .kept").count() == found["rank"]
    expect(tab.locator("[data-part=said]")).to_contain_text(f"Error ‖τ′ − τ‖ / ‖τ‖ = {100 * found['error']:.1f}\u00a0%")
    tab.get_by_role("button", name="one direction").click()
    assert json.loads(root.get_attribute("data-found"))["rank"] == 1
    box = tab.get_by_label("τ, row 2, column 2").bounding_box()
    tab.mouse.move(box["x"] + 10, box["y"] + 10)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 10, box["y"] + 10 - 21)
    tab.mouse.up()
    assert json.loads(root.get_attribute("data-found"))["matrix"][1][1] == 2.5


@pytest.mark.parametrize("address", ["task-vector-2", "spectrum-4", "averaging-2", "joint-space-1", "collapse-4"])
def test_the_button_sets_the_form_and_opens_the_tab(tab, address):
    lesson = LESSONS[address]
    at(tab, lesson.title)
    shows(tab, address)
    tab.click("#learn-try")
    expect(tab.get_by_role("tab", name=TABS[lesson.tab], exact=True)).to_have_attribute("aria-selected", "true")
    expect(tab.locator("#method input").first).to_have_value(re.compile(f"^{METHODS[lesson.recipe.method].title} "))
    for expert in lesson.recipe.experts:
        expect(tab.locator("#experts")).to_contain_text(expert.source)
    if lesson.tab == "spectra":
        said = f"matrices of {len(lesson.recipe.experts)} experts"
        expect(tab.locator("#status .ml-status.good")).to_contain_text(said)
        expect(tab.locator("#module input")).to_have_value(re.compile("^0 q "))
    if lesson.fact:
        expect(tab.locator("#readout")).to_contain_text(lesson.fact)
    if lesson.recipe.method.startswith("drm"):
        expect(tab.locator("#joint .ml-plot[data-draws]")).to_be_visible()


def test_axe_finds_nothing_on_the_matrix(tab):
    tab.locator("#learn-chapters").get_by_text(CHAPTERS[2].title).click()
    shows(tab, "truncation-1")
    tab.wait_for_selector(".ml-touch[data-found]")
    report = Axe().run(tab, {"include": [["#learn-touch"], ["#learn-words"], ["#learn-turn"]]})
    assert report.response["violations"] == []


def test_nothing_overflows_on_a_phone(page, url):  # noqa: F811
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, url)
    page.locator(".overflow-menu > button").click()
    page.locator(".overflow-dropdown").get_by_text("Learn").click()
    page.wait_for_selector("#learn-picture .ml-plot[data-draws]")
    for chapter in CHAPTERS:
        page.locator("#learn-chapters").get_by_text(chapter.title).click()
        shows(page, f"{chapter.name}-1")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
