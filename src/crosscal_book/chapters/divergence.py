"""Chapter 2: does divergence from the dense model tell more about the tasks than perplexity does?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL, tasks
from crosscal.results.frame import Results
from crosscal.stats import Estimate, holm, sign_flip_p
from crosscal_book.chapters.correlation import ALL, MIN_SETTINGS, Association, associate, scopes
from crosscal_book.chapters.divergence_runs import (
    FLIPS,
    LOSS,
    OUTCOMES,
    PREDICTORS,
    PRUNING,
    QUANTIZATION,
    VARIABLES,
    coefficient,
    nats,
    noise_floor,
    paired_values,
    reading_prompts,
    sample,
    shared,
    texts_of,
)
from crosscal_book.chapters.divergence_tail import tail_sentence
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Text, Verdict, takeaway_text
from crosscal_book.words import listing, p_text

GAIN = 0.05  # a correlation higher by less than this changes no choice between numbers; set before any run was seen
REST = 0.2  # a partial correlation below this explains less than 4 % of what the other number leaves open; set before
KEYS = [("gain", "js", LOSS), ("gain", "js", FLIPS), ("partial", "js", LOSS), ("prompts", "js", LOSS)]
KINDS = (ALL, PRUNING, QUANTIZATION)
TOO_FEW = f"there are no {MIN_SETTINGS} compressed settings, all with text and usable tasks in common, to rank"


def verdicts(results: Results) -> list[Verdict]:
    """The chapter's claims.

    The first four rest on bootstrap intervals over runs, windows and items (see `correlation`) and on p-values with
    Holm's correction over the four: a claim holds when the interval lies above 0 and p is below `LEVEL`, does not hold
    when the interval lies below what would matter (`GAIN`, for the third `REST`), and cannot be told otherwise.
    """
    return [
        tells_more(results, LOSS),
        tells_more(results, FLIPS),
        tells_what_perplexity_leaves(results),
        prompts_tell_more(results),
        above_the_floor(results),
    ]


def tells_more(results: Results, outcome: str) -> Verdict:
    """Does JS divergence order the runs by their task loss, or by the answers that change, better than perplexity does?

    The rule is that of `verdicts`, on the difference of the two rank correlations over all runs.
    """
    noun = "how much accuracy is lost" if outcome == LOSS else "how many answers change"
    claim, key = f"JS divergence tells more than perplexity about {noun}", ("gain", "js", outcome)
    found = associate(results)
    if found is None or key not in found.estimates:
        return Verdict(claim, OPEN, TOO_FEW)
    js, perplexity = (found.estimates["rho", name, outcome] for name in ("js", "perplexity"))
    within = [associate(results, kind) for kind in KINDS[1:]]
    parts = [f"within {a.scope} {a.estimates[key].text(_gain)}" for a in within if a and key in a.estimates]
    effect = (
        f"over {_size(found)} the rank correlation with {OUTCOMES[outcome]} is {js.text(coefficient)} for JS and "
        f"{perplexity.text(coefficient)} for perplexity, a difference of {_tested(results, key, _gain)}"
    )
    brief = (
        f"rank correlation {js.text(coefficient)} for JS, {perplexity.text(coefficient)} for perplexity; difference "
        f"{found.estimates[key].text(_gain)}"
    )
    return Verdict(claim, _answer(results, key, GAIN), "; ".join([effect, *parts]), "fig-correlations", brief)


def tells_what_perplexity_leaves(results: Results) -> Verdict:
    """Of two runs with equal perplexity, does JS tell which loses more? By the partial rank correlation with task loss.

    The rule is that of `verdicts` with the margin `REST`. Perplexity is known from few windows; what its own error
    hides, JS may supply, so this says what JS adds to perplexity *as measured here*.
    """
    claim, key = "At equal perplexity JS divergence still tells which model loses more", ("partial", "js", LOSS)
    found = associate(results)
    if found is None or key not in found.estimates:
        return Verdict(claim, OPEN, TOO_FEW)
    reverse = found.estimates["partial", "perplexity", LOSS]
    effect = (
        f"over {_size(found)} the rank correlation of JS with task loss at equal perplexity is "
        f"{_tested(results, key, coefficient)}; that of perplexity at equal JS is {reverse.text(coefficient)}"
    )
    return Verdict(claim, _answer(results, key, REST), effect, "fig-loss-divergence")


def prompts_tell_more(results: Results) -> Verdict:
    """Is JS on the tasks' own prompts a better guide than JS on running text? The rule is that of `verdicts`.

    Over the runs that read the prompts: those that were asked all tasks.
    """
    claim, key = "JS divergence on the tasks' own prompts tells more than on other text", ("prompts", "js", LOSS)
    results = reading_prompts(results)
    found = associate(results)
    if found is None or key not in found.estimates:
        return Verdict(claim, OPEN, TOO_FEW)
    own, other = (found.estimates["rho", name, LOSS] for name in ("js_prompts", "js"))
    effect = (
        f"over {_size(found)} the rank correlation with task loss is {own.text(coefficient)} on the prompts and "
        f"{other.text(coefficient)} on {listing(texts_of(results))}, a difference of "
        f"{_tested(results, key, _gain)}"
    )
    return Verdict(claim, _answer(results, key, GAIN), effect, "fig-correlations")


def above_the_floor(results: Results) -> Verdict:
    """Does every compressed run diverge more than the dense model does from itself in float32?

    Holds when every run's interval of the ratio, paired over windows, lies above 1 (each must, so nothing is to be
    corrected); fails when a run diverges less with Holm-corrected sign-flip p below `LEVEL`; else it cannot be told.
    """
    claim = "Even the mildest compression stands out from the rounding of bfloat16"
    found = sample(results)
    floor, why = noise_floor(results)
    if floor is None:
        return Verdict(claim, OPEN, why)
    js = found.values[VARIABLES.index("js")]
    runs, above = found.runs[found.compressed], js[found.compressed] / js[floor]
    lo, hi = np.percentile(above[:, 1:], [2.5, 97.5], axis=1)
    mildest = int(np.argmin(above[:, 0]))
    ratio = Estimate(float(above[mildest, 0]), float(lo[mildest]), float(hi[mildest]), len(runs))
    effect = (
        f"of {len(runs)} runs the mildest, {runs['setting'].iloc[mildest]}, has {ratio.text(_fold)} times the JS "
        f"divergence of the noise floor, which is {nats(js[floor, 0])} nats a token"
    )
    share = found.values[VARIABLES.index(FLIPS), floor, 0]
    if np.isfinite(share):
        ends = (100 * end[floor] for end in found.interval(FLIPS))
        effect += "; rounding alone changes {:.1f} % [{:.1f}, {:.1f}] of the answers".format(100 * share, *ends)
    p = holm(
        [_less_than_floor(results, i, floor) if a < 1 else 1.0 for i, a in zip(runs.index, above[:, 0], strict=True)]
    )
    answer = HOLDS if (lo > 1).all() else FAILS if (p < LEVEL).any() else OPEN
    return Verdict(claim, answer, effect, "fig-token-divergence")


def takeaway(results: Results) -> Text:
    """The verdicts, then which number is best, where JS wins and where not, and what its mean hides."""
    return takeaway_text(verdicts(results), best_sentence(results), where_sentence(results), tail_sentence(results))


def best_sentence(results: Results) -> str:
    """Which number has the highest rank correlation with each outcome, and how far ahead of perplexity it is."""
    found = associate(results)
    if found is None:
        return ""
    parts = []
    for outcome, noun in OUTCOMES.items():
        rhos = {name: found.estimates["rho", name, outcome] for name in PREDICTORS if _has(found, name, outcome)}
        best = max(rhos, key=lambda name: rhos[name].value)
        part = f"{PREDICTORS[best].label} with {noun}, {rhos[best].text(coefficient)}"
        gain = found.estimates.get(("gain", best, outcome))
        parts.append(part + (f" ({gain.text(_gain)} against perplexity)" if gain else ""))
    table = tasks(shared(results))
    left_out = list(table.loc[~table["usable"], "eval_set"])
    more = f" Left out, because the dense model is not above chance: {listing(left_out)}." if left_out else ""
    return (
        f"Of {len(rhos)} numbers the highest rank correlations over all runs are those of {' and '.join(parts)}. The "
        f"best of several looks better than it is, so the gain of a number picked afterwards is no test.{more}"
    )


def where(results: Results) -> pd.DataFrame:
    """The gain of JS over perplexity in every scope that can carry one, with Holm's p over scopes and outcomes.

    Of scopes with the same runs only the first is there.
    """
    lines, seen = [], set()
    for scope, mask in scopes(sample(results)).items():
        found = None if mask.tobytes() in seen else associate(results, scope)
        seen.add(mask.tobytes())
        for outcome in OUTCOMES if found else ():
            gain = found.estimates.get(("gain", "js", outcome))
            if gain:
                lines.append({"scope": scope, "outcome": outcome, "gain": gain, "p": gain.p})
    frame = pd.DataFrame(lines, columns=["scope", "outcome", "gain", "p"])
    return frame.assign(p_holm=holm(frame["p"]) if len(frame) else frame["p"])


def where_sentence(results: Results) -> str:
    """In which scopes JS is ahead of perplexity, and in which behind, after Holm's correction."""
    frame = where(results)
    if frame.empty:
        return ""
    sure = frame["p_holm"] < LEVEL
    sides = {
        "ahead of": sure & (frame["gain"].map(lambda g: g.lo) > 0),
        "behind": sure & (frame["gain"].map(lambda g: g.hi) < 0),
    }
    parts = []
    for word, chosen in sides.items():
        names = [f"{line.scope} ({OUTCOMES[line.outcome]})" for line in frame[chosen].itertuples()]
        parts.append(f"JS is {word} perplexity in {len(names)}" + (f": {listing(names)}" if names else ""))
    return (
        f"Of {len(frame)} comparisons, one for each group of runs and outcome, {'; '.join(parts)} (Holm-corrected "
        f"p < {LEVEL}, see the second table)."
    )


def _has(found: Association, name: str, outcome: str) -> bool:
    return ("rho", name, outcome) in found.estimates


def _answer(results: Results, key: tuple[str, str, str], margin: float) -> str:
    estimate, p = associate(results).estimates[key], _holm(results)[key]
    return HOLDS if estimate.lo > 0 and p < LEVEL else FAILS if estimate.hi < margin else OPEN


def _holm(results: Results) -> dict[tuple[str, str, str], float]:
    """Holm-corrected p-values of the chapter's correlation claims."""
    found = associate(results).estimates
    keys: Sequence = [key for key in KEYS if key in found]
    return dict(zip(keys, holm([found[key].p for key in keys]), strict=True))


def _tested(results: Results, key: tuple[str, str, str], text) -> str:
    return f"{associate(results).estimates[key].text(text)} ({p_text(_holm(results)[key])})"


def _less_than_floor(results: Results, row: int, floor: int) -> float:
    """The sign-flip p of "this run diverges as much as the noise floor does", over windows."""
    ids = sample(results).runs["run_id"]
    one, other = ([paired_values(results, ids[i], t, "js_divergence") for t in texts_of(results)] for i in (row, floor))
    return sign_flip_p([a - b for a, b in zip(one, other, strict=True)])


def _size(found: Association) -> str:
    return f"{found.n} runs in {found.settings} settings"


def _gain(value: float) -> str:
    return coefficient(value, 3)


def _fold(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
