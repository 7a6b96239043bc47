"""The contestants. A module of this folder is one; adding a peer is adding a file. It has

- `NAME`, the heading of its column;
- `version()`;
- `contestants(cell, tensors)`: a dict from `cells.FRESH` (a call makes new results) and `cells.PREALLOCATED` (it
  writes into memory that is there) to a function without arguments that returns the results in the order that
  `cells.reference` has; what a peer cannot do it leaves out.

Modules whose names start with `_` help others. How many threads a peer may use is the affinity of the process, which
`run.py` sets before anything is imported: `threads()`. Those of `EVERYWHERE` take tensors of any device, those of the
folder `gpu` a GPU's alone, all others the CPU's.
"""

import importlib
import os
import pkgutil

EVERYWHERE = ("compiled", "copy", "isonorm_torch", "pytorch")


def threads():
    return len(os.sched_getaffinity(0))


def load():
    """The peers on the CPU whose packages are installed, and why the others are missing."""
    return _imported(_modules(__path__))


def load_gpu():
    """The same of those on a GPU."""
    gpu = importlib.import_module("peers.gpu")
    return _imported([*EVERYWHERE, *(f"gpu.{module}" for module in _modules(gpu.__path__))])


def _modules(path):
    found = (info.name for info in pkgutil.iter_modules(path) if not info.ispkg)
    return sorted(name for name in found if not name.startswith("_"))


def _imported(modules):
    found, missing = {}, {}
    for module in modules:
        try:
            found[module] = importlib.import_module(f"peers.{module}")
        except Exception as error:  # whatever a package does where it does not fit the machine
            missing[module] = str(error)
    return found, missing
