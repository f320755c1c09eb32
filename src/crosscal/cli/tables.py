"""The tables of `evaluate` and `compare`, as aligned text, as Markdown, and in the model card of a folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from crosscal.cli.config import _REPORT
from crosscal.errors import InputError
from crosscal.files import write_atomically

_Table = tuple[list[str], list[list[str]]]
_INTERVALS = "In brackets: 95 % bootstrap intervals, over windows of text or items of a task"
_STAR = "* : p < 0.05 after Holm's correction."
_NOTE = f"{_INTERVALS}, paired with the dense model. {_STAR}"
_SIGNIFICANT = 0.05
_BEGIN, _END = "<!-- crosscal evaluate: begin -->", "<!-- crosscal evaluate: end -->"


def _note_of(result: dict) -> str:
    """Return what brackets and stars mean, where there are some in the tables of one model."""
    cells = [cell for table in (_text_table(result), _task_table(result)) for row in table[1] for cell in row]
    notes = [f"{_INTERVALS}."] * any("[" in cell for cell in cells) + [_STAR] * any("*" in cell for cell in cells)
    return " ".join(notes)


def _text_table(result: dict) -> _Table:
    """One row for each text of one model."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [("perplexity", "perplexity", _short)]
    if result["dense"]:
        columns += [("dense", "perplexity_dense", _short), ("ratio", "perplexity_ratio", _short)]
        columns += [("JS (nats)", "js_divergence", _short), ("KL (nats)", "kl_divergence", _short)]
        columns += [("same first token (%)", "top1_agreement", _percent)]
    texts = result["texts"].items()
    rows = [[name, *(_with_interval(text.get(key), write) for _, key, write in columns)] for name, text in texts]
    return ["text", *(title for title, _, _ in columns)], rows


def _task_table(result: dict) -> _Table:
    """One row for each task of one model."""
    header = ["task", "score (%)", "chance (%)", *(["dense (%)", "change (points)"] if result["dense"] else [])]
    rows = []
    for name, task in result["tasks"].items():
        row = [name, _with_interval(task, _percent), "-" if task["chance"] is None else _percent(task["chance"])]
        rows.append(row + ([_with_interval(task["dense"], _percent), _change(task)] if result["dense"] else []))
    return header, rows


def _comparison_table(result: dict) -> _Table:
    """One row for each number, one column for each model, the dense one first."""
    models, rows = result["models"], []
    for name, dense in result["texts"].items():
        titles = [f"{name}: {what}" for what in _COMPARED]
        own = [_with_interval(dense["perplexity"], _short), "-", "-"]
        for title, first, (key, write) in zip(titles, own, _COMPARED.values(), strict=True):
            rows.append([title, first, *(_with_interval(model["texts"][name].get(key), write) for model in models)])
    for task, dense in result["tasks"].items():
        changes = [_change(model["tasks"][task]) for model in models]
        rows.append([f"{task} (%)", _with_interval(dense, _percent), *changes])
    if any(model["mean_change"] for model in models):
        changes = [_with_interval(model["mean_change"], _points) for model in models]
        rows.append(["mean of tasks above chance", "-", *changes])
    return ["", "dense", *_short_names([model["model"] for model in models])], rows


def _change(task: dict) -> str:
    """The change in points; a star where it is no chance, and a word where the dense model knows nothing."""
    star = "*" if task["change"].get("p_holm", 1.0) < _SIGNIFICANT else ""
    return _with_interval(task["change"], _points) + star + ("" if task["usable"] else " (dense at chance)")


def _short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each path where these differ, else the whole names.

    >>> _short_names(["out/half", "out/4bit"]), _short_names(["a/x", "b/x"])
    (['half', '4bit'], ['a/x', 'b/x'])
    """
    last = [name.rstrip("/").split("/")[-1] for name in names]
    return last if len(set(last)) == len(last) else list(names)


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns two spaces apart, the first one flush left.

    >>> print(_aligned(["", "dense"], [["perplexity", "16.2"]]))
                dense
    perplexity   16.2
    """
    first, *others = zip(header, *rows, strict=True)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a pipe table, numbers flush right; a pipe in a name stays in its cell.

    >>> print(_markdown(["", "dense"], [["a|b.jsonl", "16.2"]]))
    |  | dense |
    | :-- | --: |
    | a\|b.jsonl | 16.2 |
    """
    marks = [":--", *["--:"] * (len(header) - 1)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [header, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], marks, *lines[1:]])


def _with_interval(cell: dict | None, write: Callable[[float], str]) -> str:
    """Return `value [lo, hi]`, the value alone of a single window or item, and a dash for what was not measured.

    >>> cell = {"value": 1.5, "lo": 1.25, "hi": 2.0, "n": 8}
    >>> _with_interval(cell, "{:.2f}".format), _with_interval(cell | {"n": 1}, str), _with_interval(None, str)
    ('1.50 [1.25, 2.00]', '1.5', '-')
    """
    if cell is None:
        return "-"
    return write(cell["value"]) + (f" [{write(cell['lo'])}, {write(cell['hi'])}]" if cell["n"] > 1 else "")


def _short(value: float) -> str:
    """Return three digits, thousands with commas.

    >>> _short(16.234), _short(1293.4), _short(0.01234), _short(1.0), _short(99.96)
    ('16.2', '1,293', '0.0123', '1.00', '100')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".removesuffix(".")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


_COMPARED: dict[str, tuple[str, Callable[[float], str]]] = {
    "perplexity, then ratio": ("perplexity_ratio", _short),
    "JS divergence (nats)": ("js_divergence", _short),
    "same first token (%)": ("top1_agreement", _percent),
}
"""Numbers of a text that models are compared by."""


def _check_card(model: str) -> Path:
    """Return the card of a folder that crosscal made; raise `InputError` for any other."""
    folder = Path(model).expanduser()
    if not (folder / _REPORT).exists():
        raise InputError(f"{model} was not made by crosscal, so --card leaves its README.md alone; leave --card out")
    return folder / "README.md"


def _write_card(model: str, result: dict) -> None:
    """Put the tables into the card, in the place of those of an earlier evaluation; the rest stays as it is."""
    path = _check_card(model)
    note = _note_of(result) + (f" Compared with {result['dense']}." if result["dense"] else "")
    tables = [_markdown(*table) for table in (_text_table(result), _task_table(result)) if table[1]]
    section = "\n\n".join([_BEGIN, "## What it lost", *tables, note.strip(), _END])
    write_atomically(path, _with_section(path.read_text(encoding="utf-8") if path.exists() else "", section))


def _with_section(card: str, text: str) -> str:
    r"""Return a card with the section in place of an earlier one, or at its end.

    >>> _with_section("# Model\n", f"{_BEGIN}new{_END}") == f"# Model\n\n{_BEGIN}new{_END}\n"
    True
    """
    before, begin, rest = card.partition(_BEGIN)
    if begin:
        return before + text + rest.partition(_END)[2]
    return f"{card.rstrip()}\n\n{text}\n".lstrip()
