"""Brings in torch while Python's search for garbage is at rest; the first thing that the package does.

torch makes a quarter of a million objects as it is imported, all to stay, and the collector would go through them again
and again.
"""

import gc


def import_torch() -> None:
    """Import it; the collector is then as it was."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if was_on:
            gc.enable()


import_torch()
