"""What was made in advance, so that a tab shows something true before the first click: a scoreboard and a sweep."""

import json

from mergelab.assets import ASSETS
from mergelab.scores.scoreboard import Board
from mergelab.scores.sweep_report import SweepReport

BOARD = ASSETS / "analyses" / "numbers-board.json"
SWEEP = ASSETS / "analyses" / "numbers-sweep.json"


def start_board() -> Board:
    """The start recipe's scores beside those of other methods."""
    return Board.from_dict(json.loads(BOARD.read_text(encoding="utf-8")))


def start_sweep() -> SweepReport:
    """The start recipe's η from 10 to 100."""
    return SweepReport.from_dict(json.loads(SWEEP.read_text(encoding="utf-8")))
