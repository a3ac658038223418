"""`python -m p2pnn` is the same as `p2pnn`."""

import sys

from p2pnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
