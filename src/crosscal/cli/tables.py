"""Numbers in rows and columns, as aligned text or as Markdown."""

from collections.abc import Callable, Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first one flush left.

    >>> print(text_table(["", "dense"], [["perplexity", "16.2"]]))
                dense
    perplexity   16.2
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table, numbers flush right.

    >>> print(markdown_table(["", "dense"], [["perplexity", "16.2"]]))
    |  | dense |
    | :-- | --: |
    | perplexity | 16.2 |
    """
    marks = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, marks, *rows])


def with_interval(cell: dict | None, write: Callable[[float], str]) -> str:
    """`value [lo, hi]`; a dash for what was not measured.

    >>> with_interval({"value": 1.5, "lo": 1.25, "hi": 2.0}, "{:.2f}".format), with_interval(None, str)
    ('1.50 [1.25, 2.00]', '-')
    """
    return "-" if cell is None else f"{write(cell['value'])} [{write(cell['lo'])}, {write(cell['hi'])}]"


def short(value: float) -> str:
    """Three digits, thousands with commas.

    >>> short(16.234), short(1293.4), short(0.01234), short(1.0), short(99.96)
    ('16.2', '1,293', '0.0123', '1.00', '100')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".removesuffix(".")


def percent(value: float) -> str:
    """A fraction in percent, one decimal."""
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    """A change of a fraction in percentage points, with its sign."""
    return f"{100 * value:+.1f}"
