"""How well a written answer matches a reference: exact match, token F1 and ROUGE-1, each from 0 to 1."""

import re
import string
from collections import Counter
from functools import lru_cache

from crosscal.errors import InputError

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _normalize(text: str) -> list[str]:
    """The words of a text in lower case, without ASCII punctuation and English articles.

    Source: the evaluation of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).

    >>> _normalize("The U.S. won an  election.")
    ['us', 'won', 'election']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _exact_match(answer: str, reference: str) -> float:
    """1 where both have the same normalized words in the same order, else 0.

    >>> _exact_match("The fog.", "fog"), _exact_match("dense fog", "fog")
    (1.0, 0.0)
    """
    return float(_normalize(answer) == _normalize(reference))


def _token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of normalized words, each counted as often as both texts have it.

    Where a text has no words left, 1 if neither has any and else 0. Source: Rajpurkar et al. 2016 (arXiv 1606.05250,
    section 6.1).

    >>> _token_f1("a dense grey fog", "The fog")  # precision 1/3, recall 1
    0.5
    """
    given, wanted = _normalize(answer), _normalize(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted))


def _rouge1(answer: str, reference: str) -> float:
    """ROUGE-1 as F-measure: words shared by both texts, articles included, without stemming, as `rouge_score` counts.

    Words are runs of a-z and 0-9 in lower case; 0 where a text has none. Raises `InputError` if `rouge_score` is not
    installed. Source: Lin 2004 (ROUGE: a package for automatic evaluation of summaries, section 2), with precision and
    recall weighing the same.

    >>> _rouge1("a dense grey fog", "The fog") == 1 / 3  # precision 1/4, recall 1/2
    True
    """
    return float(_rouge().score(reference, answer)["rouge1"].fmeasure)


@lru_cache(maxsize=1)
def _rouge():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(f"ROUGE needs the package '{error.name}'; run pip install 'crosscal[study]'") from error
    return RougeScorer(["rouge1"], use_stemmer=False)


_SCORES = {"exact_match": _exact_match, "f1": _token_f1, "rouge1": _rouge1}
"""Every score of an answer against a reference, by the name it has in results."""
