"""An expert put into another model's coordinates: which of its neurons are which, found and applied tensor by tensor.

Knows symmetries and how to match, not merges: what it hands out is a lazy mapping that reads like a checkpoint.
A line belongs here if it chooses an element of a symmetry, or applies one.
"""

from mergelab.align.alignment import BEST, HOW, Aligned, Alignment, alignment, alignments
from mergelab.align.compare import Compared, compared
from mergelab.align.selftest import selftest

__all__ = ["BEST", "HOW", "Aligned", "Alignment", "Compared", "alignment", "alignments", "compared", "selftest"]
