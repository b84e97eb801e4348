"""The tab to ask: one prompt, and what the base, an expert and the merged model make of it, side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mergelab.errors import MergeError
from mergelab.lab.lab import Lab
from mergelab.lab.own import experts_by_task, right_answers
from mergelab.lab.repair import RepairLab, lines_in
from mergelab.method import METHODS
from mergelab.page.form import Form
from mergelab.page.merge_tab import described
from mergelab.page.telling import AT_ONCE, job, saying, told
from mergelab.page.verbs import draw_verb
from mergelab.recipes.recipe import Expert
from mergelab.step import Step
from mergelab.words import counted

LOOK = (
    "Ask something that one expert knows. Look whether the merged model still answers as that expert does, and what it "
    "makes of prompts that belong to the others: an expert alone has often forgotten them."
)
EXAMPLES = [  # held-out prompts that the base gets wrong, their expert right, and STAR at η = 40 too, of four or of all
    "french: 34 =",
    "german: 691 =",
    "english: 675 =",
    "spanish: 767 =",
    "morse: 89 =",
    "reverse: 73 =",
    "roman: 1984 =",
    "sort: 9930 =",
]
NOT_YET = "Nothing is merged yet. Press **Merge**, below the recipe, and ask again: then the merged model answers, too."
NOTHING = "Nothing is merged yet: press Merge to ask the merged model, too."
FAMILY = "numbers/base"  # what the bundled prompts are for
UNREPAIRED = "none"
OPENING = "All models are asked the same, one after another; the answers come word by word."
FITTING = "Fitting the repair …"


def draw_prompt_tab(lab: Lab, repair: RepairLab, form: Form, merged: gr.State, lines: gr.Textbox) -> None:
    """Draw the tab; wire Ask and Stop. lines: the user's own calibration prompts, where none are bundled."""
    gr.Markdown(LOOK, elem_classes="ml-look")
    with gr.Row(elem_id="asking"):
        prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=1, scale=4, elem_id="prompt", min_width=220)
        expert = gr.Dropdown(
            _experts(form.base.value, form.experts.value),
            value=form.experts.value[0],
            label="Expert",
            scale=2,
            min_width=200,
            elem_id="expert",
        )
        task = gr.Dropdown(
            [UNREPAIRED, *form.experts.value],
            value=UNREPAIRED,
            label="Repaired for",
            scale=1,
            min_width=160,
            elem_id="repaired-for",
        )
    verb = draw_verb("Ask", "ask", OPENING)
    bundled_ones = gr.Dataset(
        components=[prompt],
        samples=[[example] for example in EXAMPLES],
        label="Or click one of these: held-out prompts of the bundled tasks, each for its own expert",
        elem_id="bundled-prompts",
    )
    with gr.Row(elem_id="answers"):
        of_base, of_expert, of_merged, of_repaired = (
            gr.Textbox(
                label=label,
                lines=4,
                interactive=False,
                min_width=200,
                elem_id=f"answer-{label.lower()}",
                buttons=["copy"],
            )
            for label in ("Base", "Expert", "Merged", "Repaired")
        )
    which = gr.Markdown(NOT_YET, elem_id="which")
    with gr.Accordion("More settings", open=False):
        longest = min(512, lab.limits.max_tokens or 512)
        tokens = gr.Slider(1, longest, value=min(48, longest), step=1, label="Longest answer, in tokens")
        heat = gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0 always takes the likeliest token.")
        seed = gr.Number(0, label="Seed", precision=0, info="The same for all models.")

    @job(verb.status, "Answering")
    def answers(data: dict) -> Iterator[Step | dict]:
        if not (data[prompt] or "").strip():
            raise MergeError("The prompt is empty. Write something to ask.")
        run = lab.run_named(data[merged]) if data[merged] else None
        base = run.recipe.base if run else data[form.base]
        columns = {of_base: lab.model_folder(base, base)}
        columns |= {of_expert: lab.model_folder(data[expert], base)} if data[expert] else {}
        columns |= {of_merged: run.folder} if run else {}
        settings = {"tokens": int(data[tokens]), "temperature": float(data[heat]), "seed": int(data[seed] or 0)}
        steps = len(columns) + (run is not None and data[task] != UNREPAIRED)
        titles = {of_base: "Base", of_repaired: "Repaired"}
        titles |= {of_expert: f"Expert: {Expert(data[expert]).name}" if data[expert] else "Expert: none is chosen"}
        titles |= {of_merged: f"Merged: {METHODS[run.recipe.method].title}" if run else "Merged: nothing yet"}
        yield {box: gr.update(value="", label=title) for box, title in titles.items()}
        yield Step(0, steps, "loading the models")
        for texts in lab.answers(list(columns.values()), data[prompt], **settings):
            said = dict(zip(columns, texts))
            yield said
            yield Step(sum(map(bool, texts)), steps, "word by word")
        if run and data[task] != UNREPAIRED:
            yield {of_repaired: FITTING}
            yield Step(len(columns), steps, "fitting the repair")
            patch = repair.patch(run, data[task], lines_in(data[lines]))
            for said[of_repaired] in repair.repaired_answer(run, patch, data[prompt], **settings):
                yield {of_repaired: said[of_repaired]}
        skill, right = right_answers().get(data[prompt].strip(), ("", ""))
        if right:
            yield {box: gr.update(label=f"{titles[box]} · {judged(text, right)}") for box, text in said.items()}
        words = [f"Answered by {counted(steps, 'model')}.", *([f"Right answer: {right}."] if right else [])]
        sources = [one.source for one in run.recipe.experts] if run else []
        if right and run and experts_by_task(sources)[skill] not in sources:
            words.append(f"{skill} is not part of this merge: its expert was left out.")
        yield {verb.status: saying(" ".join(words if run else [NOTHING, *words]), "good" if run else "")}

    def picked(sample: list[str], base: str, experts: list[str]) -> dict[Any, Any]:
        """A bundled prompt and its own expert, which is not always one of the merge."""
        skill, _ = right_answers()[sample[0]]
        shown = {expert: experts_by_task(experts or [])[skill]} if base == FAMILY else {}
        return {prompt: sample[0], **shown}

    def about(key: str) -> dict[Any, Any]:
        """What is merged now; the answers of the merge before go."""
        if not key:
            return {which: NOT_YET}
        run = lab.run_named(key)
        gone = {
            box: gr.update(value="", label=label) for box, label in ((of_merged, "Merged"), (of_repaired, "Repaired"))
        }
        return gone | {which: f"Merged: {described(run)}, sha256 `{run.sha256[:16]}`"}

    def choices(base: str, experts: list[str], chosen: str, repaired: str) -> tuple[Any, Any]:
        tasks = [UNREPAIRED, *experts]
        return (
            gr.update(
                choices=_experts(base, experts), value=chosen if chosen in experts else next(iter(experts), None)
            ),
            gr.update(choices=tasks, value=repaired if repaired in tasks else UNREPAIRED),
        )

    given = {prompt, expert, task, merged, lines, form.base, tokens, heat, seed}
    outputs = [verb.status, of_base, of_expert, of_merged, of_repaired]
    asked = gr.on([verb.go.click, prompt.submit], answers, given, outputs, trigger_mode="once", **AT_ONCE)
    chip = [bundled_ones, form.base, form.experts]
    taken = bundled_ones.click(told(picked), chip, [prompt, expert], **AT_ONCE)
    verb.governs([asked, taken.success(answers, given, outputs, trigger_mode="always_last", **AT_ONCE)])
    merged.change(told(about), merged, [which, of_merged, of_repaired], **AT_ONCE)
    chosen = [expert, task]
    form.picked.click(choices, [form.base, form.experts, *chosen], chosen, trigger_mode="always_last", **AT_ONCE)


def judged(text: str, right: str) -> str:
    """Whether an answer is the right one."""
    return "right" if text.strip() == right else "wrong"


def _experts(base: str, experts: list[str]) -> list[tuple[str, str]]:
    """Whom one can ask: the experts of the merge, and those of the bundled tasks that it leaves out."""
    others = [one for one in experts_by_task(experts).values() if base == FAMILY and one not in experts]
    return [*((one, one) for one in experts), *((f"{one} (not in this merge)", one) for one in others)]
