"""Tables for people: Markdown, with an interval beside every number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from crosscal.results.compare import ALL_TASKS, LEVEL, dense_means, mean_changes, task_changes, tasks
from crosscal.results.frame import DENSE, Results
from crosscal_book.axes import by_method, pattern_order
from crosscal_book.style import style_of
from crosscal_book.words import number, points


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
        body = [[c(line) if callable(c) else c.format(**line) for c in cells] for line in records]
        return cls(list(columns), body, note, text_columns)

    def __str__(self) -> str:
        rule = [":--" if column < self.text_columns else "--:" for column in range(len(self.head))]
        lines = [self.head, rule, *self.body]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return text + (f"\n\n{self.note}" if self.note else "") + "\n"

    def _repr_markdown_(self) -> str:
        return str(self)


def headline_table(results: Results, focus: str) -> Table:
    """One line per measure (perplexity of a text, mean accuracy of a domain), one column per model at one pattern."""
    runs = results.rows.drop_duplicates("run_id")
    runs = runs[(runs["method"] == DENSE) | (runs["pattern"] == focus)]
    columns = {style_of(method).label: lines["run_id"].iloc[0] for method, lines in by_method(runs)}
    body = []
    for text in results.only(run_id=results.dense_id, metric="perplexity")["eval_set"]:
        name = f"perplexity, {text.replace('_', ' ')}"
        body.append([name, *[_perplexity_cell(results, run_id, text) for run_id in columns.values()]])
    for group in dense_means(results):
        name = "accuracy, all (%)" if group == ALL_TASKS else f"accuracy, {group} (%)"
        body.append([name, *[_accuracy_cell(results, run_id, group) for run_id in columns.values()]])
    note = (
        f"Compressed models at {focus}. In brackets: 95 % bootstrap intervals, over windows for perplexity, over items "
        "for accuracy; a compressed model's accuracy has the interval of its paired difference from the dense model. "
        "Means are over tasks on which the dense model is above chance."
    )
    return Table(["", *columns], body, note)


def task_table(results: Results, focus: str) -> Table:
    """Every task at one pattern: the dense score, chance, each method's change with interval; * marks Holm p < 5 %."""
    changes = task_changes(results)
    changes = changes[changes["pattern"] == focus]
    methods = [method for method, _ in by_method(changes)]
    body = []
    for task in tasks(results).to_dict("records"):
        score = f"{100 * task['value']:.1f} [{100 * task['lo']:.1f}, {100 * task['hi']:.1f}]"
        name = task["eval_set"] + (" (AUC)" if task["metric"] == "auc" else "")
        cells = [name, task["domain"], f"{100 * task['chance']:.0f}", score]
        for method in methods:
            part = changes[(changes["eval_set"] == task["eval_set"]) & (changes["method"] == method)]
            cells.append(_change_cell(part.iloc[0]) if len(part) else "")
        body.append(cells if task["usable"] else [cells[0] + " †", *cells[1:]])
    least, most = tasks(results)["n"].min(), tasks(results)["n"].max()
    items = f"{most}" if least == most else f"{least} to {most}"
    note = (
        f"Scores in %, changes in points at {focus}, on {items} items a task. In brackets: 95 % bootstrap intervals, "
        "those of changes paired with the dense model. \\* marks a change "
        f"with Holm-corrected p < {LEVEL} (sign test on the items that changed; for AUC, bootstrap), over the usable "
        "tasks and methods of this table. † the dense model's interval includes chance: shown, used for no claim."
    )
    return Table(["task", "domain", "chance", "dense", *[style_of(m).label for m in methods]], body, note, 2)


def perplexity_table(results: Results) -> Table:
    """Perplexity of every run on every text, with intervals."""
    rows = results.only(metric="perplexity")
    texts = list(rows["eval_set"].unique())
    body = []
    for method, lines in by_method(rows):
        runs = lines.drop_duplicates("run_id")[["run_id", "pattern"]].itertuples(index=False)
        for run_id, pattern in sorted(runs, key=lambda run: pattern_order(run[1])):
            name = style_of(method).label + ("" if method == DENSE else f"\u00a0{pattern}")
            body.append([name, *[_perplexity_cell(results, run_id, text) for text in texts]])
    n, unit = rows["n"].max(), "windows of held-out text"
    return Table(["", *texts], body, f"95 % bootstrap intervals over at most {n} {unit}.")


def _perplexity_cell(results: Results, run_id: str, text: str) -> str:
    rows = results.only(run_id=run_id, metric="perplexity", eval_set=text)
    if rows.empty:
        return ""
    row = rows.iloc[0]
    return f"{number(row['value'])} [{number(row['lo'])}, {number(row['hi'])}]"


def _accuracy_cell(results: Results, run_id: str, group: str) -> str:
    if run_id == results.dense_id:
        mean = dense_means(results)[group]
        return f"{100 * mean.value:.1f} [{100 * mean.lo:.1f}, {100 * mean.hi:.1f}]"
    means = mean_changes(results)
    line = means[(means["run_id"] == run_id) & (means["group"] == group)].iloc[0]
    value, low, high = (100 * (line["dense"] + line[part]) for part in ("change", "lo", "hi"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _change_cell(line: pd.Series) -> str:
    star = r"\*" if line["p_holm"] < LEVEL else ""
    return f"{points(line['change'])}{star} [{points(line['lo'])}, {points(line['hi'])}]"
