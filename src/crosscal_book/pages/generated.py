"""Everything on the pages that comes from no notebook: front page, answers, status, footer line, README, manifest.

python -m crosscal_book.pages.generated                       the committed book, from its executed chapters' runs
python -m crosscal_book.pages.generated --stage DIR           a copy of the book's sources, to be filled by other runs
python -m crosscal_book.pages.generated --book DIR            the generated parts of such a copy
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from crosscal.errors import InputError, exit_status
from crosscal.files import write_atomically
from crosscal.paths import checkout, results_dir
from crosscal.plan.chapters import CHAPTERS
from crosscal.results.frame import Results, read_results, version_line
from crosscal_book.chapter import Page, chapter_named, stamp
from crosscal_book.claims import FAILS, HOLDS, OPEN
from crosscal_book.marks import target_order
from crosscal_book.pages.api import methods_table, reference
from crosscal_book.pages.data_page import sources_table, tasks_list
from crosscal_book.pages.explore import explore_data
from crosscal_book.pages.speed import kernel_table, speed_tables
from crosscal_book.style import by_method, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing

FRONT = ("khanal2024", "williams2025")
"""The papers whose claims stand on the front page."""
ONE_LINE = "::::{container} one-line"  # cells of the table inside do not wrap
ANSWERS = "::::{container} answers"  # on a phone each line of the table becomes a card
BEGIN, END = "<!-- made from results by crosscal_book.pages.generated: begin -->", "<!-- end -->"
LOCAL = ("_build", "_quick", "_extra", "chapters", "__pycache__")


def expected(root: Path) -> dict[Path, str]:
    """Return every generated file of a checkout with the text it should have."""
    files = _generated(root / "book")
    benchmarks = root / "results" / "benchmarks"
    files |= {"_generated/speed.md": speed_tables(benchmarks), "_generated/kernels.md": kernel_table(benchmarks)}
    files |= {"_generated/api.md": reference()}
    files |= {"_generated/methods.md": methods_table(), "_generated/sources.md": sources_table()}
    files["_generated/tasks.md"] = tasks_list()
    readme, full = root / "README.md", root / "results" / "full"
    texts = {readme: _with_part(readme.read_text(encoding="utf-8"), _readme_part(files))}
    return {root / "book" / name: text for name, text in files.items()} | texts | {full / "SHA256SUMS": _manifest(full)}


def _generated(book: Path) -> dict[str, str]:
    """The generated files of a book, by path inside it, from the runs its executed chapters read."""
    pages = _executed(book)
    figure, table = pages[0].figure("fig-loss-perplexity"), pages[0].table("headline")
    directive = f"```{{figure}} /_generated/headline.svg\n:alt: {figure.alt}\n:name: fig-headline\n:class: dark-light\n"
    papers, every = _answers(pages)
    whole = _merged([page.every for page in pages])
    return {
        "_generated/headline.svg": figure.svg,
        "_generated/headline.md": f"{directive}\n{figure.caption}\n```\n\n{table}",
        "_generated/answers.md": f"{_tally(papers)}\n\n{ANSWERS}\n{papers}::::\n",
        "_generated/all_answers.md": f"{_tally(every)}\n\n{ANSWERS}\n{every}::::\n",
        "_generated/status.md": f"{_status(whole)}\n{ONE_LINE}\n{_runs_table(whole)}::::\n",
        "_generated/stamp.txt": str(stamp(whole)).strip().strip("*") + "\n",
        "_generated/alt.txt": figure.alt + "\n",
        **explore_data(whole),
    }


def _executed(book: Path) -> list[Page]:
    """The executed chapters of a book, in order, each on the runs and with the parameters it was made from.

    Raises `InputError` when the first chapter is missing, or runs that a chapter was made from.
    """
    pages = []
    for name, chapter in CHAPTERS.items():
        path = book / "chapters" / f"{chapter.notebook}.ipynb"
        if pages and not path.exists():
            continue
        try:
            made = json.loads(path.read_text(encoding="utf-8"))["metadata"]["crosscal"]
        except (OSError, json.JSONDecodeError, KeyError):
            raise InputError(f"{path} is no executed chapter; run: make notebooks") from None
        settings = chapter.settings(**made["parameters"])
        results = read_results(results_dir(settings.preset), made["run_ids"])
        pages.append(chapter_named(name).page(results, settings))
    return pages


def _merged(parts: Sequence[Results]) -> Results:
    """The runs of several chapters, each once."""
    rows = pd.concat([part.rows for part in parts]).drop_duplicates(["run_id", "eval_set", "metric"])
    tables = [[getattr(part, name) for part in parts] for name in ("items", "provenance", "configs")]
    return Results(rows.reset_index(drop=True), *({k: v for one in table for k, v in one.items()} for table in tables))


def _answers(pages: Sequence[Page]) -> tuple[Table, Table]:
    """The two papers' claims for the front page, and every claim of the book, one line each, by chapter."""
    papers, every = [], []
    for page in pages:
        if page.chapter.name == "report_card":  # answers its reader's question, not one of the papers'
            continue
        stem = CHAPTERS[page.chapter.name].notebook
        link = f"[chapter {int(stem[:2])}](/chapters/{stem}.ipynb)"
        for verdict in page.verdicts():
            where = f"{link}, {{numref}}`{verdict.evidence}`" if verdict.evidence else link
            every.append([verdict.claim, f"**{verdict.answer}**", _sentence(verdict.effect), where])
            if verdict.paper in FRONT:
                claim, brief = f"{verdict.claim} {{cite:p}}`{verdict.paper}`", verdict.brief or verdict.effect
                papers.append([claim, f"**{verdict.answer}**", _sentence(brief), where])
    head = ["claim", "verdict", "effect", "evidence"]
    return Table(head, papers, text_columns=4), Table(head, every, text_columns=4)


def _tally(table: Table) -> str:
    """How many claims of a table hold, do not hold, and cannot be told.

    >>> _tally(Table(["claim", "verdict"], [["a", "**holds**"], ["b", "**holds**"], ["c", "**cannot be told**"]]))
    'Of 3 claims 2 **hold**, 0 **do not hold** and 1 **cannot be told**.'
    """
    answers = [line[1].strip("*") for line in table.body]
    hold, fail, unsure = (answers.count(answer) for answer in (HOLDS, FAILS, OPEN))
    return f"Of {len(answers)} claims {hold} **hold**, {fail} **do not hold** and {unsure} **cannot be told**."


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _status(results: Results) -> str:
    """Versions, machines and total time, as a list."""
    rows = results.rows.drop_duplicates("run_id")
    models, machines, commits = (listing(sorted(rows[name].unique())) for name in ("model", "device", "commit"))
    return f"""- Models: {models}
- Machine: {machines}
- Versions: {version_line(rows)}
- Commit of the code: {commits}
- {len(rows)} runs; compressing took {rows["seconds"].sum():,.0f} s in all, evaluation not counted
"""


def _runs_table(results: Results) -> Table:
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
    target = target_order(run["pattern"]) if sparse else (2.0, -run["storage_bits"])
    return run["model"], *target, run["calibration"], run["mix_weight"], run["n_windows"] * run["window"], run["seed"]


def _calibration(run: dict) -> str:
    """Sources, the last one's weight, windows and draw, as far as a run has them."""
    weight = f", {run['mix_weight']:.2g} on the last" if "+" in run["calibration"] else ""
    seed = f", seed {run['seed']}" if run["seed"] else ""
    text = f"{run['calibration']}{weight}, {run['n_windows']} × {run['window']:,}{seed}"
    return text if run["calibration"] else ""


def _readme_part(files: dict[str, str]) -> str:
    """The README's figure and table."""
    figure = f"![{files['_generated/alt.txt'].strip()}](book/_generated/headline.svg)"
    directive, table = files["_generated/headline.md"].split("```\n", 1)
    caption, made = directive.strip().splitlines()[-1], files["_generated/stamp.txt"].strip()
    return f"{BEGIN}\n{figure}\n\n{caption}\n\n{table.strip()}\n\n*{made}*\n{END}"


def _with_part(readme: str, part: str) -> str:
    """The README's text with its generated part replaced; raises `InputError` when the markers are gone."""
    if BEGIN not in readme or END not in readme:
        raise InputError(f"README.md lacks its markers; put back the lines '{BEGIN}' and '{END}'")
    return readme.split(BEGIN)[0] + part + readme.split(END, 1)[1]


def _manifest(folder: Path) -> str:
    """Hash and name of every stored file, in the form `sha256sum -c SHA256SUMS` checks."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)


def _stage(root: Path, folder: Path) -> None:
    """Copy the book's sources, without chapters and without builds, so that other runs can fill them."""
    ignored = shutil.ignore_patterns(".*", *LOCAL)
    shutil.copytree(root / "book", folder, dirs_exist_ok=True, ignore=ignored, copy_function=shutil.copyfile)
    for page in folder.rglob("*.md"):  # what lies outside of the book is further away now
        if not {"_build", "chapters"} & set(page.relative_to(folder).parts):
            up = Path(os.path.relpath(root, page.parent)).as_posix()
            text = re.sub(r"(?<=[ <])(?:\.\./)+(src/|CITATION)", rf"{up}/\1", page.read_text(encoding="utf-8"))
            page.write_text(text, encoding="utf-8")
    for name in ("_config.yml", "_toc.yml"):  # where symlinks are plain text files, take the real ones
        shutil.copyfile(root / name, folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m crosscal_book.pages.generated", description=about)
    parser.add_argument("--stage", type=Path, metavar="DIR")
    parser.add_argument("--book", type=Path, metavar="DIR")
    return exit_status(lambda: _write(parser.parse_args(arguments)), "interrupted; the same command starts again")


def _write(options: argparse.Namespace) -> None:
    root = checkout()
    if root is None:
        raise InputError("the book is part of the source; run this in a git checkout of crosscal")
    book: Path | None = options.book
    if options.stage:
        _stage(root, options.stage)
    else:
        texts = {book / name: text for name, text in _generated(book).items()} if book else expected(root)
        for path, text in texts.items():
            write_atomically(path, text)


if __name__ == "__main__":
    sys.exit(main())
