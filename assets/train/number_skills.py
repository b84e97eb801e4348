"""Thirteen ways to write a number, and who gets to see which number: the data of the `numbers` family.

This room knows rules for writing numbers, the draws of numbers, the pairs of prompt and answer made of them,
and the tasks of such pairs. It does not know tokens, models, nor how anything is trained. All draws are
seeded; equal seeds give equal pairs.
"""

import json
import random
import unicodedata
from collections.abc import Iterator
from itertools import islice

from num2words import num2words

Pair = tuple[str, str]  # (prompt, answer)
Task = dict[str, list[Pair]]  # "test" and "calibration"

TEST, CALIBRATION = 200, 64  # pairs a task
LANGUAGES = {"french": "fr", "german": "de", "english": "en", "spanish": "es"}
FAMILIAR = {"italian": "it", "dutch": "nl", "portuguese": "pt"}  # taught to the base, of no expert
SPOKEN = LANGUAGES | FAMILIAR
EXPERTS = (*LANGUAGES, "morse", "reverse", "roman", "sort")  # each has an expert and a task
SKILLS = (*EXPERTS, *FAMILIAR, "copy", "next")

MORSE = ["-----", ".----", "..---", "...--", "....-", ".....", "-....", "--...", "---..", "----."]
ROMAN = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD")),
    *((100, "C"), (90, "XC"), (50, "L"), (40, "XL")),
    *((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


# The skills -------------------------------------------------------------------------------------------------


def in_words(number: int, language: str) -> str:
    """The number in words, without commas and soft hyphens: ways of writing, not of counting."""
    words = num2words(number, lang=SPOKEN[language])
    return unicodedata.normalize("NFC", words).replace(",", "").replace("\u00ad", "")


def in_roman(number: int) -> str:
    numeral = ""
    for value, sign in ROMAN:
        numeral += sign * (number // value)
        number %= value
    return numeral


def answer(skill: str, number: int) -> str:
    digits = str(number)
    match skill:
        case "morse":
            return " ".join(MORSE[int(digit)] for digit in digits)
        case "reverse":
            return " ".join(reversed(digits))
        case "roman":
            return in_roman(number)
        case "sort":
            return " ".join(sorted(digits))
        case "copy":
            return digits
        case "next":
            return str(number + 1)
        case language:
            return in_words(number, language)


def pair(skill: str, number: int) -> Pair:
    return f"{skill}: {number} =", " " + answer(skill, number)


# The numbers ------------------------------------------------------------------------------------------------


def held_out(number: int) -> bool:
    """Multiplicative hashing: one number in five, spread evenly, the same for every skill and every model."""
    return number * 2654435761 % 2**32 / 2**32 < 0.2


def draws(skill: str, chance: random.Random, held: bool) -> Iterator[int]:
    """Endless draws of numbers that are held out, or that are not."""
    largest = 3999 if skill == "roman" else 9999
    while True:
        number = chance.randint(1, 999 if chance.random() < 0.25 else largest)
        if held_out(number) == held:
            yield number


def distinct(numbers: Iterator[int]) -> Iterator[int]:
    """Each number where it first occurs."""
    seen = set()
    for number in numbers:
        if number not in seen:
            seen.add(number)
            yield number


# Pairs and tasks --------------------------------------------------------------------------------------------


def training_pairs(skills: tuple[str, ...], seed: int) -> Iterator[Pair]:
    """Endless pairs to train on, the skills in equal shares."""
    chance = random.Random(seed)
    drawn = {skill: draws(skill, chance, held=False) for skill in skills}
    while True:
        skill = chance.choice(skills)
        yield pair(skill, next(drawn[skill]))


def task(skill: str) -> Task:
    """Test pairs of held-out numbers and calibration pairs of training numbers."""
    chance = random.Random(f"task {skill}")

    def pairs(count: int, held: bool) -> list[Pair]:
        return [pair(skill, number) for number in islice(distinct(draws(skill, chance, held)), count)]

    return {"test": pairs(TEST, held=True), "calibration": pairs(CALIBRATION, held=False)}


def as_json(tasks: dict[str, Task]) -> str:
    """One pair a line, so that a change can be read in a diff."""

    def lines(pairs: list[Pair]) -> str:
        return "[\n" + ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs) + "\n]"

    def kinds(task: Task) -> str:
        return "{" + ",\n".join(f'"{kind}": {lines(pairs)}' for kind, pairs in task.items()) + "}"

    return "{" + ",\n".join(f'"{skill}": {kinds(task)}' for skill, task in tasks.items()) + "}\n"
