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
    "measured": "measured pieces of runs, which evaluate, compare, report and the study share",
    "evaluations": "results of evaluate and compare of version 0.1",
}
"""Folders of the cache that are made again when needed."""


def _run_assets(options: argparse.Namespace) -> dict:
    """List, fetch, verify or clear archives; those named, else all that the action is for."""
    action, rehearsed = options.action, options.dry_run
    known = [*ARCHIVES, *_DERIVED] if action in ("clear", "list") else list(ARCHIVES)
    for name in options.names:
        if name not in known:
            raise InputError(f"there is no asset '{name}'{suggest(name, known)} (known: {', '.join(known)})")
    if action == "list":
        result = _listed(options.names or known)
    elif action == "fetch":
        names = options.names or [n for n, archive in ARCHIVES.items() if options.accept_terms or not archive.terms]
        would = {name: "in the cache" if is_fetched(name) else "would be fetched" for name in names}
        states = would if rehearsed else {n: _fetch_whole(n, accept_terms=options.accept_terms) for n in names}
        result = {"states": states}
    elif action == "verify":
        names = options.names or [name for name in ARCHIVES if is_fetched(name)]
        damaged = {name: files for name in names if not rehearsed and (files := verify(name))}
        if damaged:
            listed = "; ".join(f"{name}: {', '.join(files)}" for name, files in damaged.items())
            raise InputError(f"damaged files ({listed}); repair them with crosscal assets fetch {' '.join(damaged)}")
        result = {"states": dict.fromkeys(names, "would be verified" if rehearsed else "verified")}
    else:
        if not (options.names or options.yes or rehearsed):
            raise InputError("clear removes everything in the cache; add --yes, or name what to remove")
        names = options.names or known
        for name in [] if rehearsed else names:
            clear(name) if name in ARCHIVES else shutil.rmtree(cache_dir() / name, ignore_errors=True)
        result = {"states": dict.fromkeys(names, "would be removed" if rehearsed else "removed")}
    return {"action": action, "dry_run": rehearsed, **result}


def _listed(wanted: list[str]) -> dict:
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
        if archive.name in wanted
    ]
    derived = []
    for name in [name for name in _DERIVED if name in wanted]:
        n_bytes = sum(path.stat().st_size for path in (cache_dir() / name).rglob("*") if path.is_file())
        derived.append({"name": name, "bytes": n_bytes, "holds": _DERIVED[name]})
    return {"cache": str(cache_dir()), "assets": archives, "derived": derived}


def _show_assets(result: dict) -> str:
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
