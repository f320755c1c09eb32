"""The tables of `evaluate` and `compare`: (header, rows) of written numbers."""

from collections.abc import Callable, Sequence

from crosscal.cli.tables import percent, points, short, with_interval

Table = tuple[list[str], list[list[str]]]
INTERVALS = "In brackets: 95 % bootstrap intervals, over windows of text or items of a task"
STAR = "* : p < 0.05 after Holm's correction."
NOTE = f"{INTERVALS}, paired with the dense model. {STAR}"
SIGNIFICANT = 0.05


def note_of(found: dict) -> str:
    """What the brackets, and a star where there is one, mean in the tables of one model."""
    stars = any("*" in cell for row in task_table(found)[1] for cell in row)
    return f"{INTERVALS}.{' ' + STAR if stars else ''}"


def text_table_of(found: dict) -> Table:
    """One row for each text of one model."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [("perplexity", "perplexity", short)]
    if found["dense"]:
        columns += [
            ("dense", "perplexity_dense", short),
            ("ratio", "perplexity_ratio", short),
            ("JS (nats)", "js_divergence", short),
            ("KL (nats)", "kl_divergence", short),
            ("same first token (%)", "top1_agreement", percent),
        ]
    rows = [
        [name, *(with_interval(text.get(key), write) for _, key, write in columns)]
        for name, text in found["texts"].items()
    ]
    return ["text", *(title for title, _, _ in columns)], rows


def task_table(found: dict) -> Table:
    """One row for each task of one model."""
    header = ["task", "score (%)", "chance (%)", *(["dense (%)", "change (points)"] if found["dense"] else [])]
    rows = []
    for name, task in found["tasks"].items():
        row = [name, with_interval(task, percent), "-" if task["chance"] is None else percent(task["chance"])]
        rows.append(row + ([with_interval(task["dense"], percent), _change(task)] if found["dense"] else []))
    return header, rows


def comparison_table(found: dict) -> Table:
    """One row for each number, one column for each model, the dense one first."""
    models = found["models"]
    header = ["", "dense", *short_names([model["model"] for model in models])]
    rows = [row for text in found["texts"] for row in _text_rows(text, found["texts"][text], models)]
    for task in found["tasks"]:
        dense = found["tasks"][task]
        rows.append(
            [f"{task} (%)", with_interval(dense, percent), *(_change(model["tasks"][task]) for model in models)]
        )
    if any(model["mean_change"] for model in models):
        changes = [with_interval(model["mean_change"], points) for model in models]
        rows.append(["mean of tasks above chance", "-", *changes])
    return header, rows


def _text_rows(name: str, dense: dict, models: Sequence[dict]) -> list[list[str]]:
    rows = [[f"{name}: perplexity, then ratio", with_interval(dense["perplexity"], short)]]
    rows += [[f"{name}: JS divergence (nats)", "-"], [f"{name}: same first token (%)", "-"]]
    keys = (("perplexity_ratio", short), ("js_divergence", short), ("top1_agreement", percent))
    for row, (key, write) in zip(rows, keys, strict=True):
        row += [with_interval(model["texts"][name].get(key), write) for model in models]
    return rows


def _change(task: dict) -> str:
    """The change in points; a star where it is no chance, and a word where the dense model knows nothing."""
    star = "*" if task["change"].get("p_holm", 1.0) < SIGNIFICANT else ""
    return with_interval(task["change"], points) + star + ("" if task["usable"] else " (dense at chance)")


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path where these differ, else the whole names.

    >>> short_names(["out/half", "out/4bit"]), short_names(["a/x", "b/x"])
    (['half', '4bit'], ['a/x', 'b/x'])
    """
    last = [name.rstrip("/").split("/")[-1] for name in names]
    return last if len(set(last)) == len(last) else list(names)
