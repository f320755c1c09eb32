"""`python -m crosscal` is `crosscal`."""

import sys

from crosscal.cli import main

if __name__ == "__main__":
    sys.exit(main())
