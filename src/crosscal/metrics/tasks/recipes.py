"""How items are drawn: explicit seeds, distractors of similar length from other documents, options in random order.

Standard library only. An item is `{"id", "query", "choices", "gold"}`: a context without a space at its end, options
without spaces around them, and the index of the right one.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SEED = 0
NEAREST = 40
"""Distractors come from this many documents whose answers are closest in length."""


@dataclass(frozen=True)
class Entry:
    """A question with its right answer, and the document both come from."""

    id: str
    document: str
    query: str
    answer: str


def generator(task: str, purpose: str) -> random.Random:
    """A random generator that depends on the task, on what it is used for, and on nothing else.

    >>> generator("sciq", "order").random() == generator("sciq", "order").random()
    True
    """
    return random.Random(f"{SEED} {task} {purpose}")


def ordered(task: str, items: Iterable[dict], n_items: int) -> list[dict]:
    """The first `n_items` of a seeded shuffle: the first k of them are a random subset, and nested for growing k."""
    items = list(items)
    generator(task, "order").shuffle(items)
    return items[:n_items]


def item(id: str, query: str, choices: Sequence[str], gold: int) -> dict:
    """One item with its spaces in order: the harness puts one space between context and option."""
    return {"id": id, "query": query.strip(), "choices": [choice.strip() for choice in choices], "gold": gold}


def with_distractors(task: str, entries: Sequence[Entry], n_others: int) -> list[dict]:
    """Items whose wrong options are other documents' answers, drawn among those closest in length (characters)."""
    items = []
    for entry in entries:
        draw = generator(task, f"distractors {entry.id}")
        others = {e.answer: e for e in entries if e.document != entry.document and e.answer != entry.answer}
        near = sorted(others, key=lambda answer: (abs(len(answer) - len(entry.answer)), answer))[:NEAREST]
        options = [entry.answer, *draw.sample(near, n_others)]
        draw.shuffle(options)
        items.append(item(entry.id, entry.query, options, options.index(entry.answer)))
    return items


def shuffled_choices(task: str, it: dict) -> dict:
    """The same item with its options in a seeded order, for data that always lists the right one in one place."""
    order = list(range(len(it["choices"])))
    generator(task, f"choices {it['id']}").shuffle(order)
    return it | {"choices": [it["choices"][i] for i in order], "gold": order.index(it["gold"])}


def first_words(text: str, n_words: int) -> str:
    """At most the first `n_words` words, with single spaces.

    >>> first_words("one  two\\nthree", 2)
    'one two'
    """
    return " ".join(text.split()[:n_words])


def last_words(text: str, n_words: int) -> str:
    """At most the last `n_words` words, with single spaces.

    >>> last_words("one  two\\nthree", 2)
    'two three'
    """
    return " ".join(text.split()[-n_words:])
