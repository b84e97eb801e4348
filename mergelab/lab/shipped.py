"""What was made in advance, so that tabs show something true before the first click: scores, a sweep, a comparison."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergelab.assets import ASSETS
from mergelab.method import METHODS
from mergelab.scores.compare import Comparison
from mergelab.scores.scoreboard import Board
from mergelab.scores.sweep_report import SweepReport

BOARD = ASSETS / "analyses" / "numbers-board.json"
SWEEP = ASSETS / "analyses" / "numbers-sweep.json"
COMPARISON = ASSETS / "analyses" / "numbers-comparison.json"
PAIR = "star", "linear"  # the methods that are compared, A and B: that of the start recipe, and the plain average


def start_board() -> Board:
    """The start recipe's scores beside those of other methods."""
    return Board.from_dict(_read(BOARD))


def start_sweep() -> SweepReport:
    """The start recipe's η from 10 to 100."""
    return SweepReport.from_dict(_read(SWEEP))


def start_comparison() -> Comparison:
    """The start recipe's merge, A, and the plain average of its experts, B."""
    return Comparison.from_dict(_read(COMPARISON))


def start_pair() -> Board:
    """The scores of these two, as A and B, beside base and experts."""
    board, sides = start_board(), {METHODS[method].title: side for method, side in zip(PAIR, "AB")}
    names = {name: sides.get(name, name) for name in board.models if name in sides or name not in board.merges}
    scores = {(names[name], task): score for (name, task), score in board.scores.items() if name in names}
    return replace(board, models=tuple(names.values()), scores=scores)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
