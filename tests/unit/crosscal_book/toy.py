"""A toy chapter: one claim, one figure, one table."""

from crosscal.results.compare import changes, run_measures
from crosscal.results.quantities import PERPLEXITY
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import compare, every, run
from crosscal_book.drawing import Axis
from crosscal_book.marks import lines
from crosscal_book.tables import Table
from crosscal_book.words import cell, run_name

CHAPTER = Chapter("toy", note="Made up.")
CHAPTER.claim(
    "gptq-beats-rounding",
    "GPTQ beats rounding to nearest on every grid",
    compare(
        run(method="gptq"),
        run(method="rtn"),
        match=("target",),
        name="{first[target]}: {first[label]} to {second[label]}",
    ),
    every("better", by=0.01),
    evidence="fig-toy",
    paper="frantar2023gptq",
    brief="{name} {estimate}",
)


@CHAPTER.figure("fig-toy")
def _losses(page: Page):
    """Perplexity against storage, one line per method."""
    frame = changes(page.results, PERPLEXITY)
    if frame.empty:
        return "There is no compressed run."
    frame = frame.assign(x=frame["storage_bits"])[["run_id", "method", "target", "x", "value", "lo", "hi", "n"]]
    drawing = lines(frame, Axis("bits per weight", reverse=True), Axis(PERPLEXITY.compared, 10, suffix="×"))
    return drawing, f"Loss of {len(frame)} runs.", f"Loss against bits per weight of {len(frame)} made-up runs."


@CHAPTER.table("runs")
def _runs(page: Page) -> Table:
    """Every run's perplexity."""
    columns = {"": run_name, "perplexity": lambda line: cell(line, "perplexity")}
    return Table.of(run_measures(page.results, PERPLEXITY), columns, "In brackets: 95 % intervals.")
