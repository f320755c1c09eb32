"""`python -m crosscal.assets`: fetch and verify every archive that needs no terms accepted, one line for each."""

import sys

from crosscal.assets import ARCHIVES, fetch, is_fetched, verify
from crosscal.assets.store import install
from crosscal.errors import InputError


def main() -> int:
    """Fetch what is missing, check the SHA-256 of every unpacked file, mend what is damaged; 1 when that fails."""
    for name, archive in ARCHIVES.items():
        if archive.terms:
            continue
        try:
            state = _fetch_whole(name)
        except InputError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stdout.write(f"{name}: {state}\n")
    return 0


def _fetch_whole(name: str) -> str:
    """What was done: verified, fetched, or fetched again because a file was damaged."""
    state = "verified" if is_fetched(name) else "fetched and verified"
    fetch(name)
    if damaged := verify(name):
        state = f"{damaged[0]} was damaged; fetched again"
        install(ARCHIVES[name], replace=True)
    return state


if __name__ == "__main__":
    sys.exit(main())
