"""Everything on the pages that comes from rows but from no notebook: front page, status, footer line, README, manifest.

python -m crosscal_book.pages.generated                       the committed book, from its executed chapters' runs
python -m crosscal_book.pages.generated --stage DIR           a copy of the book's sources, to be filled by other runs
python -m crosscal_book.pages.generated --book DIR            the generated parts of such a copy
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from crosscal.errors import InputError
from crosscal.files import write_atomically
from crosscal.paths import checkout
from crosscal.results.frame import Results, version_line
from crosscal_book.answers import answers_tables, executed_chapters, tally
from crosscal_book.chapter import chapter_named, stamp
from crosscal_book.marks import target_order as pattern_order
from crosscal_book.pages.api import methods_table, reference
from crosscal_book.pages.explore import explore_data
from crosscal_book.pages.speed import speed_tables
from crosscal_book.pages.staging import stage
from crosscal_book.style import by_method, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing

ONE_LINE = "::::{container} one-line"  # cells of the table inside do not wrap
ANSWERS = "::::{container} answers"  # on a phone each line of the table becomes a card
BEGIN, END = "<!-- made from results by crosscal_book.pages.generated: begin -->", "<!-- end -->"


def generated(book: Path) -> dict[str, str]:
    """The generated files of a book, by path inside it, from the runs its executed chapters read."""
    chapters = executed_chapters(book)
    first = chapter_named(chapters[0].name).page(chapters[0].results)
    figure, table = first.figure("fig-loss-perplexity"), first.table("headline")
    directive = [
        "```{figure} /_generated/headline.svg",
        f":alt: {figure.alt}",
        ":name: fig-headline",
        ":class: dark-light",
    ]
    papers, every = answers_tables(chapters)
    rows = pd.concat([chapter.results.rows for chapter in chapters]).drop_duplicates(["run_id", "eval_set", "metric"])
    provenance = {run_id: made for chapter in chapters for run_id, made in chapter.results.provenance.items()}
    everything = Results(rows.reset_index(drop=True), {}, provenance)
    return {
        "_generated/headline.svg": figure.svg,
        "_generated/headline.md": "\n".join([*directive, "", figure.caption, "```", "", str(table)]),
        "_generated/answers.md": f"{tally(papers)}\n\n{ANSWERS}\n{papers}::::\n",
        "_generated/all_answers.md": f"{tally(every)}\n\n{ANSWERS}\n{every}::::\n",
        "_generated/status.md": "\n".join([status_lines(everything), ONE_LINE, f"{runs_table(everything)}::::\n"]),
        "_generated/stamp.txt": str(stamp(everything)).strip().strip("*") + "\n",
        "_generated/alt.txt": figure.alt + "\n",
        **explore_data(chapters),
    }


def status_lines(results: Results) -> str:
    """Versions, machines and total time, as a list."""
    rows = results.rows.drop_duplicates("run_id")
    lines = [
        f"- Models: {listing(sorted(rows['model'].unique()))}",
        f"- Machine: {listing(sorted(rows['device'].unique()))}",
        f"- Versions: {version_line(rows)}",
        f"- Commit of the code: {listing(sorted(rows['commit'].unique()))}",
        f"- {len(rows)} runs; compressing took {rows['seconds'].sum():,.0f} s in all, evaluation not counted",
    ]
    return "\n".join(lines) + "\n"


def runs_table(results: Results) -> Table:
    """One line per run: what compressing cost, when it was made and by which commit of the code."""
    body = []
    for method, lines in by_method(results.rows.drop_duplicates("run_id")):
        for run in sorted(lines.to_dict("records"), key=_run_order):
            made = results.provenance[run["run_id"]].get("finished", "")[:16].replace("T", " ")
            cost = [f"{run['seconds']:,.1f}", f"{run['peak_bytes'] / 2**20:,.0f}"]
            what = [run["model"], style_of(method).label, run["pattern"], _calibration(run)]
            body.append([*what, *cost, made, f"`{run['commit'][:7]}`", f"`{run['run_id']}`"])
    head = ["model", "method", "target", "calibration", "seconds", "MiB", "finished (UTC)", "commit", "run"]
    return Table(head, body, text_columns=4)


def _run_order(run: dict) -> tuple:
    """Models, then targets, then calibration."""
    sparse = run["bits"] >= 16 and "low" not in run["pattern"]
    target = pattern_order(run["pattern"]) if sparse else (2.0, -run["storage_bits"])
    return run["model"], *target, run["calibration"], run["mix_weight"], run["n_windows"] * run["window"], run["seed"]


def _calibration(run: dict) -> str:
    """Sources, the last one's weight, windows and draw, as far as a run has them."""
    if not run["calibration"]:
        return ""
    weight = f", {run['mix_weight']:.2g} on the last" if "+" in run["calibration"] else ""
    seed = f", seed {run['seed']}" if run["seed"] else ""
    return f"{run['calibration']}{weight}, {run['n_windows']} × {run['window']:,}{seed}"


def readme_part(results_files: dict[str, str]) -> str:
    """The README's figure and table."""
    figure = f"![{results_files['_generated/alt.txt'].strip()}](book/_generated/headline.svg)"
    directive, table = results_files["_generated/headline.md"].split("```\n", 1)
    caption = directive.strip().splitlines()[-1]
    return (
        f"{BEGIN}\n{figure}\n\n{caption}\n\n{table.strip()}\n\n*{results_files['_generated/stamp.txt'].strip()}*\n{END}"
    )


def with_part(readme: str, part: str) -> str:
    """The README's text with its generated part replaced; raises `InputError` when the markers are gone."""
    if BEGIN not in readme or END not in readme:
        raise InputError(f"README.md lacks its markers; put back the lines '{BEGIN}' and '{END}'")
    return readme[: readme.index(BEGIN)] + part + readme[readme.index(END) + len(END) :]


def manifest(folder: Path) -> str:
    """Hash and name of every stored file, in the form `sha256sum -c SHA256SUMS` checks."""
    files = sorted(folder.rglob("*.json"), key=lambda path: path.relative_to(folder).as_posix())
    hashes = [(hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder).as_posix()) for path in files]
    return "".join(f"{digest}  {name}\n" for digest, name in hashes)


def expected(root: Path) -> dict[Path, str]:
    """Every generated file of a checkout with the text it should have."""
    files = generated(root / "book")
    texts = {root / "book" / name: text for name, text in files.items()}
    texts[root / "book" / "_generated" / "speed.md"] = speed_tables(root / "results" / "benchmarks")
    texts[root / "book" / "_generated" / "api.md"] = reference()
    texts[root / "book" / "_generated" / "methods.md"] = methods_table()
    texts[root / "README.md"] = with_part((root / "README.md").read_text(encoding="utf-8"), readme_part(files))
    texts[root / "results" / "full" / "SHA256SUMS"] = manifest(root / "results" / "full")
    return texts


def stale_pages(root: Path) -> list[str]:
    """Complaints about generated files that differ from what the results give."""
    stale = [p for p, text in expected(root).items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    return [f"{path.relative_to(root).as_posix()} is out of date; run: make notebooks" for path in stale]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m crosscal_book.pages.generated", description=__doc__.split("\n")[0])
    parser.add_argument("--stage", type=Path, metavar="DIR")
    parser.add_argument("--book", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    root = checkout()
    try:
        if root is None:
            raise InputError("the book is part of the source; run this in a git checkout of crosscal")
        if options.stage:
            stage(root, options.stage)
        elif options.book:
            texts = {options.book / name: text for name, text in generated(options.book).items()}
        else:
            texts = expected(root)
        for path, text in ({} if options.stage else texts).items():
            write_atomically(path, text)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
