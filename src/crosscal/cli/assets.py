"""`crosscal assets`: the built-in models and texts in the cache folder."""

import argparse
import shutil

from crosscal.assets import ARCHIVES, _fetch_whole, clear, is_fetched, verify
from crosscal.cli.tables import _aligned
from crosscal.errors import InputError, suggest
from crosscal.paths import cache_dir

_DERIVED = {
    "models": "built-in models as safetensors",
    "tasks": "items of the built-in tasks",
    "written": "text written by models",
    "evaluations": "results of evaluate and compare",
}
"""Folders of the cache that are made again when needed."""


def _run(options: argparse.Namespace) -> dict:
    """List, fetch, verify or clear."""
    known = [*ARCHIVES, *_DERIVED] if options.action in ("clear", "list") else list(ARCHIVES)
    for name in options.names:
        if name not in known:
            raise InputError(f"there is no asset '{name}'{suggest(name, known)} (known: {', '.join(known)})")
    action = {"list": _list, "fetch": _fetch, "verify": _verify, "clear": _clear}[options.action]
    return {"action": options.action, "dry_run": options.dry_run, **action(options)}


def _list(options: argparse.Namespace) -> dict:
    archives = [
        {
            "name": archive.name,
            "download_bytes": archive.size,
            "unpacked_bytes": archive.unpacked,
            "fetched": is_fetched(archive.name),
            "holds": archive.holds,
            "licence": archive.licence,
            "terms": archive.terms,
        }
        for archive in ARCHIVES.values()
    ]
    derived = [{"name": name, "bytes": _size(name), "holds": holds} for name, holds in _DERIVED.items()]
    wanted = options.names or [*ARCHIVES, *_DERIVED]
    return {
        "cache": str(cache_dir()),
        "assets": [asset for asset in archives if asset["name"] in wanted],
        "derived": [part for part in derived if part["name"] in wanted],
    }


def _size(name: str) -> int:
    """Bytes of one folder of the cache."""
    return sum(path.stat().st_size for path in (cache_dir() / name).rglob("*") if path.is_file())


def _fetch(options: argparse.Namespace) -> dict:
    """Fetch the archives named, else all that come without terms or whose terms are accepted."""
    names = options.names or [n for n, archive in ARCHIVES.items() if options.accept_terms or not archive.terms]
    if options.dry_run:
        return {"states": {name: "in the cache" if is_fetched(name) else "would be fetched" for name in names}}
    return {"states": {name: _fetch_whole(name, accept_terms=options.accept_terms) for name in names}}


def _verify(options: argparse.Namespace) -> dict:
    """Check every file; raises `InputError` with all damaged ones."""
    names = options.names or [name for name in ARCHIVES if is_fetched(name)]
    if options.dry_run:
        return {"states": dict.fromkeys(names, "would be verified")}
    damaged = {name: files for name in names if (files := verify(name))}
    if damaged:
        listed = "; ".join(f"{name}: {', '.join(files)}" for name, files in damaged.items())
        raise InputError(f"damaged files ({listed}); repair them with crosscal assets fetch {' '.join(damaged)}")
    return {"states": dict.fromkeys(names, "verified")}


def _clear(options: argparse.Namespace) -> dict:
    if not options.names and not options.yes and not options.dry_run:
        raise InputError("clear removes everything in the cache; add --yes, or name what to remove")
    names = options.names or [*ARCHIVES, *_DERIVED]
    if options.dry_run:
        return {"states": dict.fromkeys(names, "would be removed")}
    for name in names:
        if name in ARCHIVES:
            clear(name)
        else:
            shutil.rmtree(cache_dir() / name, ignore_errors=True)
    return {"states": dict.fromkeys(names, "removed")}


def _show(result: dict) -> str:
    """A table of assets, or a line for each archive."""
    if result["action"] != "list":
        return "\n".join(f"{name}: {state}" for name, state in result["states"].items()) or "the cache is empty"
    rows = [
        [asset["name"], f"{asset['download_bytes'] / 1e6:.0f} MB", "yes" if asset["fetched"] else "no"]
        for asset in result["assets"]
    ]
    lines = [f"cache: {result['cache']}", "", _aligned(["name", "download", "fetched"], rows), ""]
    for asset in result["assets"]:
        terms = f"; terms to accept: {asset['terms']}" if asset["terms"] else ""
        lines.append(f"{asset['name']}: {asset['holds']}; licence {asset['licence']}{terms}")
    lines += [f"{part['name']}: {part['bytes'] / 1e6:.1f} MB, {part['holds']}" for part in result["derived"]]
    return "\n".join(lines)
