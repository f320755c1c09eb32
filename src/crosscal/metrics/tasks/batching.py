"""Which token rows to run, and in which batches: options of one item share their context, equal rows run once.

A request asks for the log-probability of `target` after `context`. Requests with the same context form a group;
in a group, targets that differ in their last token alone need the same forward pass (" Yes" and " No"). Groups
with contexts of about the same length form a batch: its first `shared` tokens of every context are run once per
group, with a key-value cache, and what follows them once per row, in pieces of about equal length.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MIN_SHARED = 8  # contexts up to this length are repeated per option: a second forward pass would cost more
_OVERHEAD = 200  # what a forward pass costs beyond its tokens, in tokens; up to this many are wasted to save one
_CACHED = 8  # a cached token counts as much as a token to run divided by this, for memory


@dataclass(frozen=True)
class _Row:
    """One sequence to run: the context, then every target token but the last; `requests` are (index, target)."""

    group: int
    context: tuple[int, ...]
    suffix: tuple[int, ...]
    requests: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def length(self) -> int:
        """Input tokens."""
        return len(self.context) + len(self.suffix)


@dataclass(frozen=True)
class _Batch:
    """The first `shared` tokens of each of `contexts` to run once, then the rows of each piece.

    In a batch that shares, `row.group` is an index into `contexts`.
    """

    contexts: tuple[tuple[int, ...], ...]
    shared: int
    pieces: tuple[tuple[_Row, ...], ...]


def _fit(context: list[int], target: list[int], max_length: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """`(context, target)` pairs whose inputs, all tokens but the target's last, fit the model.

    The context loses tokens from the left but keeps one. A target too long even then is cut into pieces, each of which
    the next has as context.
    """
    before = tuple(context)
    for start in range(0, len(target), max_length):
        piece = tuple(target[start : start + max_length])
        yield before[-(max_length + 1 - len(piece)) :], piece
        before += piece


def _group_rows(requests: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[_Row]]:
    """Rows by context, in the order of first appearance; requests that need the same input share a row."""
    contexts: dict[tuple, dict[tuple, list]] = {}
    for index, (context, target) in enumerate(requests):
        contexts.setdefault(context, {}).setdefault(target[:-1], []).append((index, target))
    return [
        [_Row(number, context, suffix, tuple(members)) for suffix, members in rows.items()]
        for number, (context, rows) in enumerate(contexts.items())
    ]


def _plan(groups: list[list[_Row]], token_budget: int, share: bool = True) -> Iterator[_Batch]:
    """Batches whose forward passes take at most `token_budget` tokens each; every row appears exactly once.

    A single row above the budget still makes a pass of its own. The longest rows come first.
    """

    def shareable(group: list[_Row]) -> bool:
        return share and len(group) > 1 and len(group[0].context) > _MIN_SHARED

    alone = [row for group in groups if not shareable(group) for row in group]
    for piece in _even(alone, lambda row: row.length, token_budget):
        yield _Batch((), 0, (tuple(piece),))
    together = [group for group in groups if shareable(group)]
    for batch in _even(together, lambda group: len(group[0].context), token_budget, n_rows=len):
        yield _shared(batch, token_budget)


def _shared(groups: list[list[_Row]], token_budget: int) -> _Batch:
    """One batch of groups: the shared length is the shortest context's, less the token that predicts the target."""
    shared = min(len(group[0].context) for group in groups) - 1
    rows = [_Row(number, row.context, row.suffix, row.requests) for number, group in enumerate(groups) for row in group]
    pieces = _even(rows, lambda row: row.length - shared, token_budget, extra=shared // _CACHED)
    return _Batch(tuple(group[0].context for group in groups), shared, tuple(map(tuple, pieces)))


def _even(
    items: list, length: Callable, token_budget: int, n_rows: Callable = lambda item: 1, extra: int = 0
) -> Iterator[list]:
    """Runs of items of about equal length, longest first.

    A run ends when its tokens, each item at the run's greatest length plus `extra`, would exceed the budget, or
    when the difference of lengths, times the rows that must carry it, would exceed `_OVERHEAD` tokens.
    """
    taken: list = []
    wasted = 0
    for item in sorted(items, key=length, reverse=True):
        waste = (length(taken[0]) - length(item)) * n_rows(item) if taken else 0
        full = taken and (len(taken) + 1) * (length(taken[0]) + extra) > token_budget
        if full or wasted + waste > _OVERHEAD:
            yield taken
            taken, wasted, waste = [], 0, 0
        taken.append(item)
        wasted += waste
    if taken:
        yield taken
