"""Tables for people: Markdown, with an interval beside every number."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table as Markdown; shown as such by a notebook. All columns but the first `text_columns` hold numbers."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    note: str = ""
    text_columns: int = 1

    @classmethod
    def of(
        cls, lines: pd.DataFrame, columns: Mapping[str, str | Callable], note: str = "", text_columns: int = 1
    ) -> "Table":
        """Return one line for each of a frame: a column is a format of the line's fields or a function of the line.

        >>> print(Table.of(pd.DataFrame({"a": [1.5]}), {"": "{a:.2f}", "twice": lambda line: f"{2 * line['a']:g}"}))
        |  | twice |
        | :-- | --: |
        | 1.50 | 3 |
        <BLANKLINE>
        """
        records = lines.to_dict("records")
        cells = columns.values()
        body = [[c(line) if callable(c) else c.format_map(line) for c in cells] for line in records]
        return cls(list(columns), body, note, text_columns)

    @classmethod
    def of_cells(
        cls, cells: Iterable[tuple[str, str, str]], corner: str = "", note: str = "", text_columns: int = 1
    ) -> "Table":
        """Return a table of (line, column, text) cells, both in order of appearance; `corner` heads the lines' names.

        >>> table = Table.of_cells([("a", "x", "1"), ("b", "x", "2"), ("b", "y", "3")])
        >>> table.head, table.body
        (['', 'x', 'y'], [['a', '1', ''], ['b', '2', '3']])
        """
        texts = {(line, column): text for line, column, text in cells}
        lines, columns = (list(dict.fromkeys(names)) for names in zip(*texts, strict=True)) if texts else ([], [])
        body = [[line, *[texts.get((line, column), "") for column in columns]] for line in lines]
        return cls([corner, *columns], body, note, text_columns)

    def __str__(self) -> str:
        rule = [":--" if column < self.text_columns else "--:" for column in range(len(self.head))]
        lines = [self.head, rule, *self.body]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return text + (f"\n\n{self.note}" if self.note else "") + "\n"

    def _repr_markdown_(self) -> str:
        return str(self)
