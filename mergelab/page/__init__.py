"""The page: a recipe on the left, what it does on the right. Reads like its table of contents.

Only this room knows gradio. Widgets are drawn from METHODS; each button says one verb of the lab, and what lies behind
the lab is read and named here, never worked with. Events of the page are private; machines use the typed endpoints of
endpoints.py.
"""

import os

import mergelab.start  # noqa: F401  before anything else brings in torch

# isort: split

import gradio as gr

from mergelab.assets import ASSETS
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab
from mergelab.limits import Limits
from mergelab.page import endpoints
from mergelab.page.compare_tab import draw_compare_tab
from mergelab.page.form import draw_form
from mergelab.page.health import health_route
from mergelab.page.learn_tab import draw_learn_tab
from mergelab.page.light import LIGHTER
from mergelab.page.link import draw_link
from mergelab.page.merge_tab import draw_merge_tab
from mergelab.page.panel import PAGE_CSS, SERVED
from mergelab.page.prompt_tab import draw_prompt_tab
from mergelab.page.repair_tab import draw_repair_tab
from mergelab.page.scores_tab import draw_scores_tab
from mergelab.page.spectra_tab import draw_spectra_tab
from mergelab.page.sweep_tab import draw_sweep_tab
from mergelab.page.telling import AT_ONCE
from mergelab.page.visitors import watch_visitors

TITLE = "mergelab"
LINE = (
    "See what a merge of fine-tuned models keeps of each, before you make it. The models here are tiny: each writes "
    "numbers in its own way.\n\n**1** Drag **η** · **2** Press **Merge** · **3** Ask it in **Try prompts**"
)


def build(lab: Lab) -> gr.Blocks:
    """The whole page over one lab."""
    gr.set_static_paths(SERVED)
    repair = RepairLab(lab)
    stale = (600, 3600) if lab.limits.public else None  # uploads of visitors; those of a person alone go at the end
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=stale) as page:
        endpoints.publish(lab, repair)  # first: an endpoint's name is its own
        watch_visitors(lab, page)
        with gr.Row(elem_id="top"):
            gr.Markdown(f"# {TITLE}\n{LINE}", elem_id="head")
            learn = gr.Button("New here? Learn it step by step", size="sm", scale=0, min_width=220, elem_id="to-learn")
        with gr.Row(elem_id="bench"):
            with gr.Column(scale=1, min_width=300, elem_id="side"):
                form = draw_form(lab)
            with gr.Column(scale=4, min_width=320), gr.Tabs() as tabs:
                with gr.Tab("Spectra", id="spectra", elem_id="spectra-tab"):
                    spectra = draw_spectra_tab(lab, form)
                with gr.Tab("Merge", id="merge"):
                    merged, history = draw_merge_tab(lab, repair, form, tabs)
                prompts = gr.Tab("Try prompts", id="prompts")  # third, as the line says; drawn when all is there to ask
                with gr.Tab("Scores", id="scores-tab") as scores:
                    asked = draw_scores_tab(lab, form, scores)
                with gr.Tab("Sweep", id="sweep-tab") as sweep:
                    draw_sweep_tab(lab, form, asked, sweep)
                with gr.Tab("Compare", id="compare-tab") as compare:
                    draw_compare_tab(lab, form, history, asked, compare)
                with gr.Tab("Repair", id="repair"):
                    lines = draw_repair_tab(repair, form)
                with gr.Tab("Learn", id="learn"):
                    step = draw_learn_tab(form, tabs, spectra)
                with prompts:
                    draw_prompt_tab(lab, repair, form, merged, lines)
        learn.click(lambda: gr.Tabs(selected="learn"), None, tabs, **AT_ONCE)
        draw_link(lab, form, tabs, spectra, {"step": step})
    return page


def launch(lab: Lab | None = None, **options):
    """Build the page and serve it; options go to gradio's launch()."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    limits = Limits.read()
    lab = lab or Lab(limits=limits)
    lab.opens_to_others()
    os.environ["GRADIO_TEMP_DIR"] = str(lab.folder)  # what it serves lies there already, and is not copied
    page = build(lab)
    settings = {
        "theme": _theme(),
        "css_paths": [PAGE_CSS],
        "run_history": False,  # it would store every figure in the browser, several times per event
        "ssr_mode": False,
        "enable_monitoring": False,
        "footer_links": ["api"],
        "show_error": False,
        "max_file_size": "20mb",
        "max_threads": 64,  # those who wait in line take one each
        "app_kwargs": {"routes": [health_route(lab)]} | LIGHTER,
        "state_session_capacity": 500,
        "favicon_path": str(ASSETS / "icon.svg"),
    }
    return page.queue(default_concurrency_limit=4, max_size=256).launch(**settings | options)


def _theme() -> gr.themes.Base:
    """Gradio's own look, tighter, in the system's fonts, with small print that can be read."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="indigo", spacing_size="sm", **fonts)
    readable = {"body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_300"}
    readable |= {"block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300"}
    button = {f"button_primary_background_fill{state}": "*primary_600" for state in ("", "_dark")}
    boxes = {"checkbox_border_color_dark": "*neutral_500", "slider_color_dark": "*primary_500"}
    return theme.set(**readable, **button, **boxes)
