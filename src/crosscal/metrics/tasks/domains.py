"""The domain of the harness's own tasks, from their names. Standard library only."""

_WORDS = {
    "biomedical": (
        "pubmed",
        "med",
        "bioasq",
        "anatomy",
        "clinical",
        "virology",
        "nutrition",
        "genetics",
        "health",
        "usmle",
        "careqa",
        "mediqa",
    ),
    "legal": ("law", "legal", "jurisprudence", "casehold", "lex", "cuad", "contract"),
}


def harness_domain(name: str) -> str:
    """One of "biomedical", "legal" and "general", by the parts of a task's name.

    >>> harness_domain("mmlu_professional_law"), harness_domain("medmcqa"), harness_domain("hellaswag")
    ('legal', 'biomedical', 'general')
    """
    parts = name.lower().removeprefix("harness:").replace("-", "_").split("_")
    for domain, words in _WORDS.items():
        if any(part.startswith(words) for part in parts):
            return domain
    return "general"
