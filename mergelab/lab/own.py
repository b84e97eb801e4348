"""What the bundled experts were trained for: their tasks, the right answers, and which expert knows which task."""

from collections.abc import Sequence
from functools import cache

from mergelab.assets import bundled
from mergelab.errors import MergeError
from mergelab.recipes.recipe import Expert, Recipe
from mergelab.scores.questions import Questions
from mergelab.tasks import Task, own_task, tasks


def own_tasks(recipe: Recipe) -> list[tuple[Expert, Task]]:
    """The bundled tasks that a recipe's experts were trained for, each with its expert."""
    family = recipe.base.partition("/")[0]
    mine = [expert for expert in recipe.experts if recipe.base in bundled() and expert.source.startswith(f"{family}/")]
    return [(expert, task) for expert in mine if (task := own_task(expert.source))]


@cache
def right_answers() -> dict[str, tuple[str, str]]:
    """Each bundled held-out prompt, with the name of its task and the answer that is right."""
    return {prompt: (task.name, answer.strip()) for task in tasks().values() for prompt, answer in task.test}


def experts_by_task(sources: Sequence[str]) -> dict[str, str]:
    """For each bundled task the expert that was trained for it: of these sources the first, else the bundled one."""
    found = {name: f"numbers/{name}" for name in tasks()}
    for source in reversed(sources):
        if task := own_task(source):
            found[task.name] = source
    return found


def questions_for(recipe: Recipe, asked: Sequence[Questions] | None) -> list[Questions]:
    """What models are scored on: what is asked; if that is None, the bundled experts' tasks. MergeError if nothing."""
    questions = own_questions(recipe) if asked is None else list(asked)
    if not questions:
        raise MergeError("These experts have no bundled tasks. Give prompts of your own, with their answers.")
    return questions


def own_questions(recipe: Recipe) -> list[Questions]:
    """The held-out prompts of a recipe's bundled experts, task by task; nothing for other experts."""
    found = {task.name: Questions(task.name, task.test) for _, task in own_tasks(recipe)}
    return list(found.values())
