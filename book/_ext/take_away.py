"""What readers take with them: every row as CSV and, where pyarrow is there, as Parquet; the PDF, where it was made.

The rows are those of the page that explores them, `_generated/explore_rows.html`. The tags `with_pdf` and
`with_parquet` let a page name only what there is.
"""

import csv
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

NAME, PDF = "crosscal-rows", "_extra/crosscal.pdf"


def rows(folder: Path) -> tuple[list[str], list[list]]:
    """Column names and rows, from the data of the page that explores them."""
    text = (folder / "_generated" / "explore_rows.html").read_text(encoding="utf-8")
    data = json.loads(text[text.index(">") + 1 : text.rindex("</script>")])
    head = [*data["facts"], "evaluated_on", "metric", "value", "lo", "hi", "n", "unit"]
    body = []
    for run, name, metric, value, lo, hi, n in data["rows"]:
        measured = data["metrics"][metric]
        body.append([*data["runs"][run], data["sets"][name], measured, value, lo, hi, n, data["units"][measured]])
    return head, body


def write_rows(app, error):
    """Put the files beside the pages."""
    if error or app.builder.name != "html":
        return
    if app.tags.has("with_pdf"):
        shutil.copyfile(Path(app.confdir) / PDF, Path(app.outdir) / Path(PDF).name)
    head, body = rows(Path(app.confdir))
    with open(Path(app.outdir) / f"{NAME}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([head, *body])
    if app.tags.has("with_parquet"):
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({name: list(column) for name, column in zip(head, zip(*body, strict=True), strict=True)})
        parquet.write_table(table, Path(app.outdir) / f"{NAME}.parquet")


def setup(app):
    """Sphinx's entry point."""
    if (Path(app.confdir) / PDF).exists():
        app.tags.add("with_pdf")
    if find_spec("pyarrow"):
        app.tags.add("with_parquet")
    app.connect("build-finished", write_rows)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
