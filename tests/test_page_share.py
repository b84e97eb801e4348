"""What people show each other, in a real browser: links, examples, a figure's numbers and pictures, a report."""

import csv
import io
import json
import re
import xml.etree.ElementTree as xml

import pytest
from playwright.sync_api import expect
from test_page import browser, choose, lab, merged, opened, page, url  # noqa: F401  fixtures

from mergelab.lab.gallery import examples
from mergelab.lab.link import recipe_of, words_of
from mergelab.page.form import OWN
from mergelab.page.panel import ADDRESS_JS
from mergelab.recipes.recipe import Expert, Recipe

MODULE = "model.layers.2.mlp.up_proj.weight"


def rewritten(page, pattern):  # noqa: F811
    page.wait_for_function("pattern => new RegExp(pattern).test(location.search)", arg=pattern)


def shown(page):  # noqa: F811
    """What stands in the form and over the pictures."""
    boxes = {name: page.locator(f"#{name} input").first.input_value() for name in ("method", "module", "fact")}
    return boxes | {"eta": page.get_by_role("slider", name="η (eta)").first.input_value()}


def experts_in(page):  # noqa: F811
    """Whose rows the heatmap has."""
    return page.evaluate("mergelab.table(document.querySelector('#heat .ml-plot')).headers.slice(1)")


def moved(page, steps):  # noqa: F811
    page.get_by_role("slider", name="η (eta)").first.focus()
    for _ in range(steps):
        page.keyboard.press("ArrowRight")


def test_the_address_follows_and_brings_everything_back(page, browser, url):  # noqa: F811
    assert page.evaluate("location.search") == ""
    moved(page, 15)
    choose(page, "#module", re.compile("^2 up"))
    choose(page, "#fact", "effective rank")
    page.get_by_role("tab", name="Sweep").click()
    rewritten(page, "eta=55.*tab=sweep-tab|tab=sweep-tab.*eta=55")
    address, before = page.url, shown(page)
    assert "recipe=" not in address and MODULE in address
    other = browser.new_page()
    other.goto(address)
    expect(other.get_by_role("tab", name="Sweep")).to_have_attribute("aria-selected", "true", timeout=60_000)
    other.get_by_role("tab", name="Spectra").click()
    expect(other.locator("#readout")).to_contain_text("effective rank")
    assert shown(other) == before and before["module"].startswith("2 up") and before["eta"] == "55"
    other.goto("about:blank")
    other.go_back()
    expect(other.get_by_role("slider", name="η (eta)").first).to_have_value("55", timeout=60_000)
    other.close()


def test_a_recipe_of_ones_own_travels_in_a_link_and_is_analysed_but_not_merged(page, url, lab):  # noqa: F811
    experts = (Expert("numbers/sort", 0.5), Expert("numbers/roman"))
    recipe = Recipe("numbers/base", experts, "ties", {"density": 0.35}, seed=7)
    words, runs = words_of(recipe), list(lab.runs)
    opened(page, url, f"?recipe={words['recipe']}&tab=spectra")
    expect(page.locator("#status")).to_contain_text("The recipe of this address is open")
    assert experts_in(page) == ["sort", "roman"]
    expect(page.get_by_role("slider", name="density").first).to_have_value("0.35")
    page.get_by_role("button", name="Recipe as YAML").click()
    expect(page.locator(".cm-content").first).to_contain_text("seed: 7")
    assert recipe_of(words).seed == 7 and list(lab.runs) == runs


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?recipe=~garbage", "cannot be read"),
        ("?recipe=<img src=x onerror=alert(1)>", "a recipe that there is not"),
        ("?eta=many", "must be a number"),
        (
            "?recipe=" + words_of(Recipe("/etc", (Expert("/etc/passwd"),), "linear"))["recipe"],
            "has no safetensors weights",
        ),
    ],
)
def test_a_broken_or_hostile_link_is_told_and_harms_nothing(page, url, query, sentence):  # noqa: F811
    page.on("dialog", lambda dialog: page.faults.append(dialog.message) or dialog.dismiss())
    opened(page, url, query)
    expect(page.locator("#status")).to_contain_text(sentence)
    assert experts_in(page) == ["french", "german", "english", "spanish"]


def test_copy_link_copies_the_address_and_on_a_space_that_of_the_space(page, url):  # noqa: F811
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    moved(page, 5)
    page.click("#copy-link")
    expect(page.locator("#copy-link")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"{url}?eta=45"
    page.evaluate("mergelab.copyLink('https://huggingface.co/spaces/owner/name')")
    page.wait_for_function(
        "navigator.clipboard.readText().then(t => t === 'https://huggingface.co/spaces/owner/name?eta=45')"
    )


def test_an_example_brings_its_recipe_its_pictures_and_its_own_address_at_once(page):  # noqa: F811
    choose(page, "#example", examples()["numbers-drm-h"].title)
    expect(page.locator("#joint .ml-plot[data-draws]")).to_be_visible()
    expect(page.locator("#status")).to_contain_text(examples()["numbers-drm-h"].about)
    expect(page.locator("#method input").first).to_have_value("DRM-H · spectral")
    rewritten(page, "recipe=numbers-drm-h")
    choose(page, "#example", examples()["numbers-star-by-module"].title)
    expect(page.locator("#readout")).to_contain_text("The η of 12 of 28 modules is their own")
    rewritten(page, "recipe=numbers-star-by-module")
    choose(page, "#method", "Karcher mean · angles")
    expect(page.locator("#example input")).to_have_value(OWN)


def downloaded(page, panel, kind):  # noqa: F811
    with page.expect_download() as download:
        page.locator(f"{panel} .ml-tools").get_by_text(kind, exact=True).click()
    assert download.value.suggested_filename == f"mergelab-{panel[1:]}.{kind.lower()}"
    return download.value.path().read_bytes()


def rows_of(page, panel):  # noqa: F811
    return list(csv.reader(io.StringIO(downloaded(page, panel, "CSV").decode(), newline="")))


def test_the_csv_of_a_heatmap_has_every_cell_as_it_is_drawn(page):  # noqa: F811
    moved(page, 20)
    expect(page.locator("#heat .ml-plot")).to_have_attribute("data-eta", "60")
    headers, *rows = rows_of(page, "#heat")
    assert headers == ["module", "french", "german", "english", "spanish"] and len(rows) == 28
    assert rows[0][0] == "model.layers.0.mlp.down_proj.weight"
    drawn = page.locator("#heat .heatmaplayer text").all_text_contents()
    assert [row[1 + expert] for expert in range(4) for row in rows] == drawn


def test_the_csv_of_curves_has_a_column_for_each_under_the_name_of_its_axis(page):  # noqa: F811
    traces = page.evaluate("document.querySelector('#lines .ml-plot').data.map(t => ({name: t.name, y: [...t.y]}))")
    headers, *rows = rows_of(page, "#lines")
    assert headers[1:3] == ["french: singular value σ", "french: share of the nuclear norm"]
    assert len(headers) == 1 + len(traces) and [row[0] for row in rows] == [str(i + 1) for i in range(128)]
    for i, trace in enumerate(traces):
        written = [float(row[1 + i]) for row in rows[: len(trace["y"])]]
        assert written == trace["y"] and not any(row[1 + i] for row in rows[len(written) :])


def test_intervals_and_clouds_of_points_are_written_out(page):  # noqa: F811
    table = """([data, layout]) => { const host = document.createElement('div'); host.data = data; host.layout = layout
        return mergelab.table(host) }"""
    layout = {"xaxis": {"title": {"text": "knob"}}, "yaxis": {"title": {"text": "score"}}}
    error = {"array": [0.5, None], "arrayminus": [0.25, None]}
    curve = {"type": "scatter", "name": "a, b", "x": [10, 20], "y": [1, 2], "error_y": error}
    assert page.evaluate(table, [[curve], layout]) == {
        "headers": ["knob", "a, b", "a, b, low", "a, b, high"],
        "rows": [[10, 1, 0.75, 1.5], [20, 2, None, None]],
    }
    cloud = [{"type": "scatter", "name": n, "x": x, "y": [1, 2]} for n, x in (("a", [1, 1]), ("b", [2, 3]))]
    assert page.evaluate(table, [cloud, layout]) == {
        "headers": ["series", "knob", "score"],
        "rows": [["a", 1, 1], ["a", 1, 2], ["b", 2, 1], ["b", 3, 2]],
    }
    assert page.evaluate(table, [[], layout]) is None


def test_a_figure_is_taken_home_as_png_and_svg_dark_on_white_also_in_the_dark(page, url):  # noqa: F811
    opened(page, url, "?__theme=dark")
    assert downloaded(page, "#heat", "PNG").startswith(b"\x89PNG\r\n\x1a\n")
    picture = downloaded(page, "#heat", "SVG").decode()
    xml.fromstring(picture)
    assert "3 down" in picture and "rgb(34, 34, 34)" in picture


def test_the_numbers_of_a_figure_open_by_keyboard_as_a_named_table_that_follows_eta(page):  # noqa: F811
    button = page.get_by_role("button", name="Show the numbers of the figure heat")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    table = page.get_by_role("region", name="Numbers of the figure heat").get_by_role("table")
    expect(table.get_by_role("columnheader")).to_have_text(["module", "french", "german", "english", "spanish"])
    expect(table.locator("caption")).to_contain_text("Heatmap of the share of singular directions kept")
    assert table.get_by_role("row").count() == 29
    before = table.locator("tbody td").all_text_contents()
    moved(page, 20)
    page.wait_for_function("old => document.querySelector('#heat tbody td').textContent !== old", arg=before[0])


def test_every_figure_offers_its_numbers(page):  # noqa: F811
    panels = page.evaluate("[...document.querySelectorAll('.ml-plot')].map(p => p.nextElementSibling?.className || '')")
    assert len(panels) >= 2 and all("ml-tools" in name for name in panels)


def test_the_report_of_a_merge_opens_from_a_disk_with_no_network(page, browser, tmp_path):  # noqa: F811
    merged(page)
    with page.expect_download() as download:
        page.click("#report-html")
    path = tmp_path / "report.html"
    download.value.save_as(path)
    other, asked, faults = browser.new_page(), [], []
    other.on("request", lambda request: asked.append(request.url))
    other.on("pageerror", lambda error: faults.append(str(error)))
    other.goto(path.as_uri())
    other.wait_for_selector("figure:last-of-type .ml-plot[data-draws]")
    expect(other.locator("[data-key=scores] .ml-plot")).to_have_attribute("aria-label", re.compile("^french: base"))
    expect(other.locator("#readout")).to_contain_text("At η = 40 %")
    other.locator(".eta input").fill("60")
    expect(other.locator("#readout")).to_contain_text("At η = 60 %")
    assert asked == [path.as_uri()] and faults == []
    other.close()
    with page.expect_download() as download:
        page.click("#report-json")
    report = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert report["scores"].keys() == {"french", "german", "english", "spanish"}
    assert {"base", "expert", "merged"} == report["scores"]["french"].keys()
    assert report["sha256"] and report["inputs"] and report["versions"]["torch"]
    curves = [layer["curves"] for layer in report["layers"] if layer["decomposed"]]
    assert [len(one["singular_values"]) for one in curves] == [4] * 28


def test_the_first_load_is_less_than_a_megabyte(browser, url):  # noqa: F811
    fresh = browser.new_context().new_page()
    wire, sizes = fresh.context.new_cdp_session(fresh), []
    wire.send("Network.enable")
    wire.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    opened(fresh, url)
    fresh.wait_for_timeout(1000)
    fresh.context.close()
    assert 300_000 < sum(sizes) < 1_000_000


def test_a_figure_is_drawn_the_same_after_the_address_has_changed(page):  # noqa: F811
    clips = "[...document.querySelectorAll('[clip-path*=http]')].map(node => node.getAttribute('clip-path'))"
    moved(page, 5)
    rewritten(page, "eta=45")
    asked = len(page.asked)
    moved(page, 5)
    rewritten(page, "eta=50")
    assert page.evaluate(clips) == [] and page.asked[asked:] == []


def test_a_form_that_changes_to_what_it_is_asks_nothing(browser):  # noqa: F811
    blank = browser.new_page()
    blank.set_content("<button id=settled></button><button id=quick></button><button id=picked></button>")
    blank.evaluate("() => { mergelab = {}; clicks = []; onclick = event => clicks.push(event.target.id) }")
    blank.add_script_tag(path=ADDRESS_JS)
    said = [[["a", "b"], 1], [["a", "b"], 1], [["a", "b"], 2], [["a"], 2], [["a"], 2]]
    clicks = blank.evaluate(
        """async said => {
          for (const values of said) {
            mergelab.formChanged(values, [0])
            await new Promise(done => setTimeout(done, 250))
          }
          return clicks
        }""",
        said,
    )
    blank.close()
    assert clicks == ["settled", "quick", "picked", "settled", "quick", "settled", "quick", "picked"]
