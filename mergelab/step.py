"""How far a job is: what every long verb yields as it goes."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """`done` of `total`, and the name of what was done last. made: what is finished so far, where that can be shown."""

    done: int
    total: int
    name: str
    made: Any = None
