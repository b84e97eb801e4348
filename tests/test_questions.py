"""The user's own prompts: three formats that say the same, and all that can be wrong with a line."""

import json

import pytest

from mergelab import MergeError
from mergelab.scores.questions import LONGEST, MOST, OWN, Questions, questions_from, questions_in

PAIRS = (("2 + 2 =", "4"), ("capital of France?", "Paris, of course"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("txt", "# a comment\n2 + 2 = => 4\n\ncapital of France? => Paris, of course\n"),
        ("txt", "2 + 2 =\t4\ncapital of France?\tParis, of course"),
        ("csv", 'prompt,answer\n2 + 2 =,4\ncapital of France?,"Paris, of course"\n'),
        ("csv", "Answer;Prompt\r\n4;2 + 2 =\r\n\r\nParis, of course;capital of France?\r\n"),
        ("jsonl", "\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in PAIRS)),
    ],
)
def test_every_format_says_the_same(kind, text):
    assert questions_from(text, kind) == [Questions(OWN, PAIRS)]


def test_lines_with_a_task_are_scored_task_by_task_in_the_order_of_the_file():
    text = "a => 1 => sums\nb => 2\nc\t3\tsums\n"
    found = {questions.task: questions.pairs for questions in questions_from(text)}
    assert found == {"sums": (("a", "1"), ("c", "3")), OWN: (("b", "2"),)}


def test_a_bare_text_is_for_perplexity():
    (questions,) = questions_from("It was a dark and stormy night.", measure="perplexity")
    assert questions.pairs == (("", "It was a dark and stormy night."),)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("txt", "", "There is no prompt in it"),
        (
            "txt",
            "a => 1\nno arrow here",
            "Line 2 is only a text, with no prompt: 'no arrow here'. Score it by perplexity",
        ),
        ("txt", "a => 1 => t => more", "Line 1 has 4 parts: found 'a => 1 => t => more'"),
        ("txt", "a => ", "Line 1 has no answer: found 'a'"),
        ("txt", "a\t", "Line 1 has no answer: found 'a'"),
        ("txt", f"a => {'x' * LONGEST}", f"at most {LONGEST}"),
        ("txt", "a => 1\n" * (MOST + 1), f"more than {MOST}"),
        ("csv", "a,1\nb,2", "Line 1 must name the columns prompt, answer and, if you like, task; found 'a,1'"),
        ("csv", "prompt,answer,label\na,1,x", "unknown column 'label'"),
        ("csv", "prompt,answer\na,1\nb,2,3", "Line 3 has 3 cells, and line 1 has 2"),
        ("csv", 'prompt,answer\na,"1', "is not valid CSV"),
        ("jsonl", '{"prompt": "a", "answer": "1"}\n{"prompt": ', "Line 2 is not valid JSON"),
        ("jsonl", '["a", "1"]', "Line 1 must be an object of texts"),
        ("jsonl", '{"prompt": "a", "answer": 1}', "Line 1 must be an object of texts"),
        ("jsonl", '{"promt": "a", "answer": "1"}', "Did you mean 'prompt'?"),
        ("pdf", "a => 1", "not as '.pdf'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_what_was_found(kind, text, said):
    with pytest.raises(MergeError) as error:
        questions_from(text, kind)
    assert said in str(error.value)


def test_a_file_is_read_by_its_ending_and_errors_name_it(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("\ufeffprompt,answer\nà,é\n".encode())
    assert questions_in(path)[0].pairs == (("à", "é"),)
    path.write_bytes(b"prompt,answer\n\xff,1\n")
    with pytest.raises(MergeError, match="'mine.csv' is not UTF-8 text"):
        questions_in(path)
    path.write_text("prompt,answer\nb,\n")
    with pytest.raises(MergeError, match="'mine.csv': Line 2 has no answer"):
        questions_in(path)
    with pytest.raises(MergeError, match="Cannot read"):
        questions_in(tmp_path / "none.txt")
