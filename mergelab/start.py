"""Brings in torch while Python's search for garbage is at rest; the first thing that the package does.

torch makes a quarter of a million objects as it is imported, all to stay, and the collector would go through them again
and again: while it is imported, and a tenth of a second long each time that it looks at everything.
"""

import gc
import sys


def import_torch() -> None:
    """Import it, and keep the collector from looking at what is there then; it is then on or off as before."""
    if "torch" in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401

        gc.freeze()
    finally:
        if was_on:
            gc.enable()


import_torch()
