"""The program `python -m isonorm`."""

import sys

from isonorm._audit.command import main

if __name__ == "__main__":
    sys.exit(main())
