"""The contract as a scalar program, with the Python standard library alone.

    python spec/reference.py           writes golden/{forward,backward,order}.json again
    python spec/reference.py --check   holds this program to every bit of golden/*.json

Read it in this order, each beside its page: arithmetic.py (one operation), order.py (order.md),
norms.py (norms.md: one row, one channel), layers.py (whole arrays and options), cases.py and
cases_backward.py (the inputs of our golden files, drawn by draw.py), goldens.py (their format).
"""

import sys

sys.dont_write_bytecode = True  # nothing is left beside the sources

import goldens

if __name__ == "__main__":
    sys.exit(goldens.check() if "--check" in sys.argv[1:] else goldens.write())
