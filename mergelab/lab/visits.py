"""Where things lie on disk: a folder for this process, and in it one for each visitor, whose name nobody can guess."""

import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mergelab.files.lock import locked

PREFIX, ALIVE = "mergelab-lab-", ".alive"
MOST = 1000  # visitors that are remembered: those who call without a page never say goodbye
LATE = 5.0  # seconds in which what one who left had asked for may still begin


class Visits:
    """A folder for each visitor. gone: told the folder of one who left, before it is removed.

    idle: seconds after which one who does nothing is taken to have left (None: never).
    """

    def __init__(
        self,
        folder: Path,
        gone: Callable[[Path], None] = lambda folder: None,
        most: int = MOST,
        idle: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.gone, self.most, self.idle, self.clock = folder, gone, most, idle, clock
        self._homes: OrderedDict[str, tuple[Path, float]] = OrderedDict()  # with the time of its last use
        self._left: dict[str, float] = {}  # when
        self._going = 0  # whose folder is being removed
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The visitors that have a folder, be it one that is being removed."""
        return len(self._homes) + self._going

    def home(self, visitor: str) -> Path:
        """The folder of a visitor; made when it is first asked for."""
        self.sweep()
        with self._lock:
            home, _ = self._homes.pop(visitor, (self.folder / "visits" / secrets.token_hex(16), 0))
            self._homes[visitor] = home, self.clock()
            home.mkdir(parents=True, exist_ok=True)
        return home

    def leave(self, visitor: str) -> None:
        """Remove what a visitor has made. One who comes back, because only the line was cut, begins anew."""
        with self._lock:
            self._left[visitor] = self.clock()
        self._remove(visitor)

    def sweep(self) -> None:
        """Let go those who are idle, those whose work began only when they had left, and the oldest of too many."""
        now = self.clock()
        with self._lock:
            ghosts = [
                v for v, (_, used) in self._homes.items() if v in self._left and used < self._left[v] + LATE < now
            ]
            idle = [v for v, (_, used) in self._homes.items() if self.idle is not None and used + self.idle < now]
            oldest = list(self._homes)[: -self.most]
            self._left = {v: when for v, when in self._left.items() if when + 2 * LATE > now or v in self._homes}
        for visitor in {*ghosts, *idle, *oldest}:
            self._remove(visitor)

    def _remove(self, visitor: str) -> None:
        with self._lock:
            home, _ = self._homes.pop(visitor, (None, 0))
            self._going += home is not None
        if home is None:
            return
        try:
            self.gone(home)
            shutil.rmtree(home, ignore_errors=True)
        finally:
            with self._lock:
                self._going -= 1


def own_folder() -> tuple[Path, object]:
    """A temporary folder of this process, and the lock that says that it is alive; those of dead ones are removed."""
    remove_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    return folder, locked(folder / ALIVE)


def remove_leftovers(place: Path) -> None:
    """Remove the folders of processes that have ended without doing so."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if (folder / ALIVE).is_file() and (lock := locked(folder / ALIVE, sure=True)):
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()
