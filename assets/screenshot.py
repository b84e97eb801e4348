"""Makes the README's pictures: `python assets/screenshot.py` opens the page in Chromium and saves three of its tabs."""

import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from mergelab.page import launch

HERE = Path(__file__).parent


def main() -> None:
    _, url, _ = launch(prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(f"{url}?__theme=light")
        taken(page, "page", "#lines .ml-plot[data-eta]")
        page.get_by_role("tab", name="Scores").click()
        taken(page, "scores", "#board .ml-plot[data-draws]")
        page.get_by_role("tab", name="Repair").click()
        taken(page, "repair", "#variance .ml-plot[data-draws]")
        browser.close()


def taken(page: Page, name: str, drawn: str) -> None:
    """Save what is in view as assets/NAME.png, once `drawn` is there."""
    page.wait_for_selector(drawn)
    page.wait_for_timeout(1500)
    page.screenshot(path=HERE / f"{name}.png")


if __name__ == "__main__":
    main()
