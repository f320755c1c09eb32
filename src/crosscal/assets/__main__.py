"""`python -m crosscal.assets`: fetch and verify every archive that needs no terms accepted, one line for each."""

import sys

from crosscal.assets import ARCHIVES, _fetch_whole
from crosscal.errors import exit_status


def _fetch_all() -> None:
    """Fetch what is missing, check the SHA-256 of every unpacked file, mend what is damaged."""
    for name, archive in ARCHIVES.items():
        if not archive.terms:
            sys.stdout.write(f"{name}: {_fetch_whole(name)}\n")


if __name__ == "__main__":
    sys.exit(exit_status(_fetch_all, "interrupted; what was fetched is kept, start again for the rest"))
