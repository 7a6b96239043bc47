"""The contestants. A module of this folder is one; adding a peer is adding a file. It has

- `NAME`, the heading of its column;
- `version()`;
- `contestants(cell, tensors)`: a dict from `cells.FRESH` (a call makes new results) and `cells.PREALLOCATED` (it
  writes into memory that is there) to a function without arguments that returns the results in the order that
  `cells.reference` has; what a peer cannot do it leaves out.

Modules whose names start with `_` help others. How many threads a peer may use is the affinity of the process, which
`run.py` sets before anything is imported: `threads()`.
"""

import importlib
import os
import pkgutil


def threads():
    return len(os.sched_getaffinity(0))


def load():
    """The peers whose packages are installed, and why the others are missing."""
    found, missing = {}, {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")):
        try:
            found[module] = importlib.import_module(f"peers.{module}")
        except (ImportError, OSError, RuntimeError) as error:
            missing[module] = str(error)
    return found, missing
