"""A copy of the book's sources, without chapters and without builds, to be filled by other runs."""

import os
import re
import shutil
from pathlib import Path

LOCAL = ("_build", "_quick", "_extra", "chapters", "__pycache__")


def stage(root: Path, folder: Path) -> None:
    """Copy the book's sources, without chapters and without builds, so that other runs can fill them."""
    for entry in sorted((root / "book").iterdir()):
        if entry.name in LOCAL or entry.name.startswith("."):
            continue
        target = folder / entry.name
        if entry.is_dir():
            shutil.copytree(entry, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry, target)
    for page in folder.rglob("*.md"):  # what lies outside of the book is further away now
        if not {"_build", "chapters"} & set(page.relative_to(folder).parts):
            page.write_text(_moved(page.read_text(encoding="utf-8"), page, root), encoding="utf-8")
    for name in ("_config.yml", "_toc.yml"):  # where symlinks are plain text files, take the real ones
        shutil.copyfile(root / name, folder / name)


def _moved(text: str, page: Path, root: Path) -> str:
    """A page's text with its paths to files outside of the book correct for where the page lies now."""
    up = Path(os.path.relpath(root, page.parent)).as_posix()
    return re.sub(r"(?<=[ <])(?:\.\./)+(src/|CITATION)", rf"{up}/\1", text)
