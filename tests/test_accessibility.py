"""Every tab, looked through by axe-core: names, contrast, roles, headings; in light and dark, wide and narrow."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from test_page import browser as browser
from test_page import lab as lab
from test_page import opened
from test_page import url as url

THEIRS = [".virtual-table-viewport"]  # gradio's table scrolls sideways and cannot be focused
SCREENS = {"wide and light": (1440, 900, "light"), "narrow and dark": (390, 844, "dark")}


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing_on_any_tab(browser, url, screen):
    width, height, theme = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height})
    expect.set_options(timeout=60_000)
    opened(page, url, f"?__theme={theme}")
    found = {}
    for name in tabs(page):
        open_tab(page, name)
        report = Axe().run(page, {"exclude": [THEIRS]}, {"resultTypes": ["violations"]}).response["violations"]
        found[name] = [(fault["id"], [node["html"][:160] for node in fault["nodes"]]) for fault in report]
    page.close()
    assert len(found) >= 7 and found == dict.fromkeys(found, [])


def tabs(page):
    """The tabs' names; on a phone the last ones lie behind the dots."""
    names = page.get_by_role("tab").all_text_contents()
    if (more := page.get_by_label("More tabs")).is_visible():
        more.click()
        names += page.locator(".overflow-dropdown button").all_text_contents()
        page.keyboard.press("Escape")
        more.click()
    return [name.strip() for name in dict.fromkeys(names)]


def open_tab(page, name):
    shown = page.get_by_role("tab", name=name, exact=True)
    if not shown.count():
        page.get_by_label("More tabs").click()
        shown = page.locator(".overflow-dropdown button", has_text=name)
    shown.click()
    page.wait_for_timeout(800)  # for what fades in
