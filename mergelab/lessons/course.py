"""All chapters in their order, and every lesson by its address, as in `truncation-2`."""

from mergelab.lessons import averaging, collapse, joint_space, spectrum, task_vector, truncation
from mergelab.lessons.lesson import Chapter, Lesson

CHAPTERS: tuple[Chapter, ...] = tuple(
    part.CHAPTER for part in (task_vector, spectrum, truncation, averaging, joint_space, collapse)
)
LESSONS: dict[str, Lesson] = {
    f"{chapter.name}-{number}": lesson
    for chapter in CHAPTERS
    for number, lesson in enumerate(chapter.lessons, start=1)
}  # fmt: skip


def known(address: str | None) -> str:
    """The address if there is such a lesson, else that of the first one: it may come from a link."""
    return address if address in LESSONS else next(iter(LESSONS))


def chapter_of(address: str) -> Chapter:
    """The chapter that a lesson stands in."""
    return next(chapter for chapter in CHAPTERS if LESSONS[address] in chapter.lessons)
