"""Batches hold every row once, stay within the budget and never start after what they must score."""

import random

import pytest

from crosscal.metrics.tasks.batching import _CACHED, _fit, _group_rows, _plan, _Row


def groups(seed: int) -> list[list[_Row]]:
    draw = random.Random(seed)
    requests = []
    for _ in range(draw.randint(1, 40)):
        context = tuple(draw.randrange(50) for _ in range(draw.randint(1, 80)))
        for _ in range(draw.randint(1, 5)):
            requests.append((context, tuple(draw.randrange(50) for _ in range(draw.randint(1, 20)))))
    return _group_rows(requests)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [True, False])
def test_requests_are_scored_once_within_the_budget(seed, share):
    found, budget = groups(seed), random.Random(seed).choice([1, 100, 400, 5000])
    batches = list(_plan(found, budget, share))
    asked = sorted(index for group in found for row in group for index, _ in row.requests)
    rows = [(batch, piece) for batch in batches for piece in batch.pieces]
    assert sorted(index for _, piece in rows for row in piece for index, _ in row.requests) == asked
    for batch, piece in rows:
        assert all(batch.shared < len(row.context) for row in piece)
        widest = max(row.length for row in piece) - batch.shared + batch.shared // _CACHED
        assert len(piece) == 1 or len(piece) * widest <= budget
    for batch in batches:
        assert len(batch.contexts) <= 1 or len(batch.contexts) * batch.shared <= budget
        if batch.shared:
            assert all(batch.contexts[row.group] == row.context for piece in batch.pieces for row in piece)
        assert share or not batch.shared


def test_requests_with_the_same_input_share_a_row():
    (group,) = _group_rows([((1, 2, 3), (4,)), ((1, 2, 3), (5,)), ((1, 2, 3), (4, 6))])
    assert [(row.suffix, len(row.requests)) for row in group] == [((), 2), ((4,), 1)]


@pytest.mark.parametrize("seed", range(10))
def test_pieces_fit_and_make_up_the_target(seed):
    draw = random.Random(seed)
    context, target = ([draw.randrange(50) for _ in range(draw.randint(1, 30))] for _ in range(2))
    max_length = draw.randint(1, 40)
    pieces = list(_fit(context, target, max_length))
    assert [token for _, piece in pieces for token in piece] == target
    tokens, end = context + target, len(context)
    for before, piece in pieces:
        assert 1 <= len(before) == min(end, max_length + 1 - len(piece))
        assert tuple(tokens[end - len(before) : end + len(piece)]) == before + piece
        end += len(piece)
