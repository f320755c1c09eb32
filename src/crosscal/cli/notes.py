"""Sentences for people while a command works: on standard error, so that standard output holds the result alone."""

import argparse
import sys


def note(options: argparse.Namespace, text: str) -> None:
    """Write one line to standard error, unless `--quiet` was given."""
    if not options.quiet:
        sys.stderr.write(f"{text}\n")
