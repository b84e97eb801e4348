"""Numbers with their nouns."""

import pytest

from mergelab.words import counted


@pytest.mark.parametrize(("number", "said"), [(0, "0 matrices"), (1, "1 matrix"), (2, "2 matrices")])
def test_a_noun_is_in_the_singular_for_one_alone(number, said):
    assert counted(number, "matrix") == said
    assert counted(number, "expert") == f"{number} expert{'s' * (number != 1)}"
