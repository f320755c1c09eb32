"""Chapter 3, the answers: does it matter what text a compression is calibrated on, how much, and which draw of it?"""

from crosscal.results.frame import Results, model_names
from crosscal_book.chapters.calibration_answers import task_data
from crosscal_book.chapters.calibration_claims import (
    any_text_beats_random,
    domain_text,
    method_dependence,
    own_text,
    random_is_useless,
    source_against_draw,
    windows,
)
from crosscal_book.chapters.calibration_data import PERPLEXITY, draw_noise, gather, name_of
from crosscal_book.verdicts import Text, Verdict, takeaway_text
from crosscal_book.words import listing


def verdicts(results: Results, general: str = "c4", focus: str = "50%") -> list[Verdict]:
    """Every claim of the chapter, the reader's first question first."""
    return [
        source_against_draw(results, general),
        method_dependence(results, general, focus),
        domain_text(results, general),
        own_text(results, general),
        any_text_beats_random(results, general),
        random_is_useless(results, general),
        windows(results, general),
        *task_data(results, general),
    ]


def takeaway(results: Results, general: str = "c4", focus: str = "50%") -> Text:
    """The chapter's opening: its verdicts, and what their numbers rest on."""
    evidence = gather(results, general)
    draws = {name_of(group): len(evidence.draws(group, general)) for group in evidence.groups}
    drawn = [f"{name} ({n})" for name, n in draws.items() if n > 1]
    noise = {group: draw_noise(evidence, group, PERPLEXITY) for group in evidence.groups}
    parts = [
        f"On {model_names(results.rows)}, calibrated on {evidence.size[0]} windows of {evidence.size[1]} tokens unless "
        f"said otherwise; sources: {listing(evidence.sources())}; perplexity is the geometric mean over "
        f"{listing(evidence.sets(PERPLEXITY))}."
    ]
    if drawn:
        parts.append(f"Draws of {general}: {listing(drawn)}. Where a method has one draw, the widest known stands in.")
    elif any(found is None for found in noise.values()):
        parts.append("Nothing was drawn twice, so the intervals hold the held-out windows' uncertainty only.")
    return takeaway_text(verdicts(results, general, focus), " ".join(parts))
