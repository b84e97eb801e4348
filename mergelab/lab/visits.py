"""Where things lie on disk: a folder for this process, and in it one for each visitor, whose name nobody can guess."""

import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PREFIX, ALIVE = "mergelab-lab-", ".alive"
MOST = 1000  # visitors that are remembered: those who call without a page never say goodbye


class Visits:
    """A folder for each visitor. gone: told the folder of one who left, before it is removed."""

    def __init__(self, folder: Path, gone: Callable[[Path], None] = lambda folder: None, most: int = MOST):
        self.folder, self.gone, self.most = folder, gone, most
        self._homes: OrderedDict[str, Path] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._homes)

    def home(self, visitor: str) -> Path:
        """The folder of a visitor; made when it is first asked for."""
        with self._lock:
            if visitor not in self._homes:
                self._homes[visitor] = self.folder / "visits" / secrets.token_hex(16)
            self._homes.move_to_end(visitor)
            home = self._homes[visitor]
            home.mkdir(parents=True, exist_ok=True)
            old = list(self._homes)[: -self.most]
        for visitor in old:
            self.leave(visitor)
        return home

    def leave(self, visitor: str) -> None:
        """Remove what a visitor has made."""
        with self._lock:
            home = self._homes.pop(visitor, None)
        if home is not None:
            self.gone(home)
            shutil.rmtree(home, ignore_errors=True)


def own_folder() -> tuple[Path, object]:
    """A temporary folder of this process, and the lock that says that it is alive; those of dead ones are removed."""
    remove_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    return folder, _lock(folder)


def remove_leftovers(place: Path) -> None:
    """Remove the folders of processes that have ended without doing so."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if (folder / ALIVE).is_file() and (lock := _lock(folder)):
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()


def _lock(folder: Path):
    """The open lock of a folder, which the system lets go when this process ends; None if another one holds it."""
    file = open(folder / ALIVE, "ab")  # noqa: SIM115  held as long as the process lives
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows removes temporary files itself
        return file
    except OSError:
        file.close()
        return None
    return file
