"""Chapter 4: does calibrating on general and domain text at once keep both, at what weight and at what cost?"""

from crosscal.results.frame import Results
from crosscal_book.chapters import cross_claims, cross_rivals
from crosscal_book.chapters.cross_runs import Mixes, by_model, mixes
from crosscal_book.verdicts import OPEN, Text, Verdict, takeaway_text


def models_of(results: Results, general: str) -> dict[str, Mixes]:
    """The cross-calibration runs of each model, the study's own first; `general` is the general source."""
    return {model: mixes(part, general) for model, part in by_model(results).items()}


def verdicts(results: Results, general: str = "c4") -> list[Verdict]:
    """The answers of the chapter, in the order in which it asks; `general` is the general calibration source."""
    (model, main), *others = models_of(results, general).items()
    found = [
        *cross_claims.keeps_both(main),
        cross_claims.tasks_follow(main),
        cross_claims.good_default(main),
        cross_rivals.beats_doubling(main),
        cross_rivals.beats_dpruner(main),
        cross_rivals.smaller_for_quantization(main),
        cross_rivals.one_mix_for_all(main),
        *(cross_claims.holds_on(name, other) for name, other in others),
    ]
    if not others:
        claim = "Cross-calibration keeps both texts on another architecture too"
        found.append(Verdict(claim, OPEN, f"all runs are of one model, {model}"))
    return [*found, cross_claims.over_all_draws(main)]


def takeaway(results: Results, general: str = "c4") -> Text:
    """The chapter's answers, each linked to its figure, and how they are judged."""
    more = (
        "Changes are of perplexity, negative is better, with 95 % bootstrap intervals paired over windows (over "
        "draws in the last). Verdicts rest on one-sided t tests, which for few windows are stricter than "
        "these intervals; but for the last they are about one draw of the calibration windows."
    )
    return takeaway_text(verdicts(results, general), more)
