"""The merge methods, one paper a file. What uses `@merge_method` here is in the page, the command line and the tests.

A line belongs here if it knows which paper it is; it sees one Layer, and neither names of files nor devices.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
