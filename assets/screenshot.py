"""Makes the README's picture: `python assets/screenshot.py` opens the page in Chromium and saves assets/page.png."""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from mergelab.page import launch

OUT = Path(__file__).with_name("page.png")


def main() -> None:
    _, url, _ = launch(prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(f"{url}?__theme=light")
        page.wait_for_selector("#lines .ml-plot[data-eta]")
        page.wait_for_timeout(1000)
        page.screenshot(path=OUT)
        browser.close()


if __name__ == "__main__":
    main()
