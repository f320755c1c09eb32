"""Chapter 2: does divergence from the dense model tell more about the tasks than perplexity does?"""

from dataclasses import replace

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, paired, tasks
from crosscal.results.frame import Results
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, sign_flip_p
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every, mean
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, scatter
from crosscal_book.numbers.correlation import (
    ALL,
    JS,
    MIN_RUNS,
    MIN_SETTINGS,
    PERPLEXITIES,
    Association,
    associate,
    association_lines,
    coefficient,
    dots,
    gain_text,
    where,
    where_lines,
    winner,
)
from crosscal_book.numbers.predictors import (
    DRAWS,
    FLIPS,
    FLOOR,
    LOSS,
    OUTCOMES,
    PREDICTORS,
    PRUNING,
    QUANTIZATION,
    VARIABLES,
    curves,
    matched_runs,
    nats,
    noise_floor,
    reading_prompts,
    run_lines,
    sample,
    shared,
    texts_of,
)
from crosscal_book.style import STYLES, MethodStyle, by_method
from crosscal_book.tables import Table
from crosscal_book.words import interval, listing

GAIN = 0.05  # a correlation higher by less than this changes no choice between numbers; set before any run was seen
REST = 0.2  # a partial correlation below this explains less than 4 % of what the other number leaves open; set before
KINDS = (ALL, PRUNING, QUANTIZATION)
TOO_FEW = f"there are no {MIN_SETTINGS} compressed settings, all with text and usable tasks in common, to rank"
SCATTER, DOTS, TOKENS = "fig-loss-divergence", "fig-correlations", "fig-token-divergence"
HIGHEST = 100.0  # relative perplexity at which the axis is cut
LOOKS = {LOSS: MethodStyle("with task loss", "#0067A5", "o"), FLIPS: MethodStyle("with answer flips", "#B84A00", "s")}


def _note(page: Page) -> list[str]:
    return [_best_sentence(page.results), _where_sentence(page.results), _tail_sentence(page.results)]


CHAPTER = Chapter("divergence", note=_note, prepare=lambda results, _: results)


def _associated(key: tuple[str, str, str], *beside: tuple[str, str, str], prompts: bool = False):
    """The rows of a claim on one correlation: its estimate, and those `beside` it as texts a, b, ..."""

    def rows(page: Page) -> pd.DataFrame:
        results = reading_prompts(page.results) if prompts else page.results
        association = associate(results)
        if association is None or key not in association.estimates:
            return pd.DataFrame()
        others = dict(zip("ab", (association.estimates[k].text(coefficient) for k in beside), strict=False))
        parts = [associate(results, kind) for kind in KINDS[1:]]
        kinds = [f"; within {a.scope} {a.estimates[key].text(gain_text)}" for a in parts if a and key in a.estimates]
        size = f"{association.n} runs in {association.settings} settings"
        facts = {"name": "all runs", "size": size, "kinds": "".join(kinds), "texts": listing(texts_of(results))}
        return pd.DataFrame([vars(association.estimates[key]) | facts | others])

    return rows


def _over_floor(page: Page) -> pd.DataFrame:
    """Every run's JS over that of the dense model in float32, resampled together: shown by an interval above 1.

    Each must, so nothing is to be corrected; p of "less than the floor" is the sign flips' over windows.
    """
    results, drawn = page.results, sample(page.results)
    floor, _ = noise_floor(results)
    if floor is None:
        return pd.DataFrame()
    js, runs = drawn.values[VARIABLES.index("js")], drawn.runs[drawn.compressed]
    ratios, floor_id = js[drawn.compressed] / js[floor], drawn.runs["run_id"].iloc[floor]
    flips, found = drawn.values[VARIABLES.index(FLIPS), floor], []
    text = Estimate.of_draws(100 * flips, 0).text("{:.1f}".format).replace(" [", " % [")
    rounding = f"; rounding alone changes {text} of the answers" if np.isfinite(flips[0]) else ""
    for line, ratio in zip(runs.to_dict("records"), ratios, strict=True):
        estimate, p_no = Estimate.of_draws(ratio, len(runs)), 1.0
        if estimate.value < 1:
            both = paired(shared(results), line["run_id"], floor_id, DIVERGENCE, texts_of(results))
            p_no = sign_flip_p(both.groups())
        shown = 0.0 if estimate.lo > 1 else 1.0
        facts = {"name": line["setting"], "floor": nats(js[floor, 0]), "rounding": rounding}
        found.append(line | vars(estimate) | facts | {"p_yes": shown, "p_yes_holm": shown, "p_no": p_no})
    return pd.DataFrame(found)


CORRELATION = {"on": replace(ACCURACY, label="rank correlation"), "family": "correlations", "missing": TOO_FEW}
for outcome, noun in ((LOSS, "how much accuracy is lost"), (FLIPS, "how many answers change")):
    CHAPTER.claim(
        f"tells-more-{outcome}",
        f"JS divergence tells more than perplexity about {noun}",
        _associated(("gain", "js", outcome), ("rho", "js", outcome), ("rho", "perplexity", outcome)),
        mean("better", by=GAIN),
        evidence=DOTS,
        paper="khanal2024",
        write=gain_text,
        says=f"over {{size}} the rank correlation with {OUTCOMES[outcome]} is {{a}} for JS and {{b}} for perplexity, a "
        "difference of {estimate} ({p}){kinds}",
        brief="rank correlation {a} for JS, {b} for perplexity; difference {estimate}",
        **CORRELATION,
    )
CHAPTER.claim(
    "tells-what-perplexity-leaves",
    "At equal perplexity JS divergence still tells which model loses more",
    _associated(("partial", "js", LOSS), ("partial", "perplexity", LOSS)),
    mean("better", by=REST),
    evidence=SCATTER,
    write=coefficient,
    says="over {size} the rank correlation of JS with task loss at equal perplexity is {estimate} ({p}); that of "
    "perplexity at equal JS is {a}",
    **CORRELATION,
)
CHAPTER.claim(
    "prompts-tell-more",
    "JS divergence on the tasks' own prompts tells more than on other text",
    _associated(("prompts", "js", LOSS), ("rho", "js_prompts", LOSS), ("rho", "js", LOSS), prompts=True),
    mean("better", by=GAIN),
    evidence=DOTS,
    write=gain_text,
    says="over {size} the rank correlation with task loss is {a} on the prompts and {b} on {texts}, a difference of "
    "{estimate} ({p})",
    **CORRELATION,
)
CHAPTER.claim(
    "above-the-floor",
    "Even the mildest compression stands out from the rounding of bfloat16",
    _over_floor,
    every("better"),
    on=replace(PERPLEXITY, higher_is_better=True),
    write=lambda ratio: f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}",
    evidence=TOKENS,
    says="of {count} runs the mildest, {name}, has {estimate} times the JS divergence of the noise floor, which is "
    "{floor} nats a token{rounding}",
    missing=lambda page: noise_floor(page.results)[1],
)


def _best_sentence(results: Results) -> str:
    """Which number has the highest rank correlation with each outcome, and how far ahead of perplexity it is."""
    association = associate(results)
    if association is None:
        return ""
    parts, known = [], association.estimates
    for outcome, noun in OUTCOMES.items():
        rhos = {name: known["rho", name, outcome] for name in PREDICTORS if ("rho", name, outcome) in known}
        best = max(rhos, key=lambda name: rhos[name].value)
        gain = known.get(("gain", best, outcome))
        ahead = f" ({gain.text(gain_text)} against perplexity)" if gain else ""
        parts.append(f"{PREDICTORS[best].label} with {noun}, {rhos[best].text(coefficient)}{ahead}")
    table = tasks(shared(results))
    left_out = list(table.loc[~table["usable"], "eval_set"])
    more = f" Left out, because the dense model is not above chance: {listing(left_out)}." if left_out else ""
    return (
        f"Of {len(rhos)} numbers the highest rank correlations over all runs are those of {' and '.join(parts)}. The "
        f"best of several looks better than it is, so the gain of a number picked afterwards is no test.{more}"
    )


def _where_sentence(results: Results) -> str:
    """In which scopes JS is ahead of perplexity, and in which behind, after Holm's correction."""
    frame = where(results)
    if frame.empty:
        return ""
    winners, parts = frame.apply(winner, axis=1), []
    for word, best in (("ahead of", JS), ("behind", PERPLEXITIES)):
        names = [f"{line.scope} ({OUTCOMES[line.outcome]})" for line in frame[winners == best].itertuples()]
        parts.append(f"JS is {word} perplexity in {len(names)}" + (f": {listing(names)}" if names else ""))
    return (
        f"Of {len(frame)} comparisons, one for each group of runs and outcome, {'; '.join(parts)} (Holm-corrected "
        f"p < {LEVEL}, see the second table)."
    )


def _tail_sentence(results: Results) -> str:
    """What the mean hides."""
    runs = matched_runs(results)
    if runs.empty or runs["p99"].isna().all():
        return ""
    least, most = (runs.loc[place].to_dict() for place in (runs["js"].idxmin(), runs["js"].idxmax()))
    ends = [_span(runs[part] / runs["js"], digits) for part, digits in (("p99", ".1f"), ("p50", ".2f"))]
    text = (
        f"The mean hides a tail ([evidence](#{TOKENS})): in {_place(runs)} the worst hundredth of tokens begins at "
        f"{ends[0]} times a model's mean JS, the median token is at {ends[1]} times it."
    )
    if len(runs) > 1:
        text += (
            f" Equal perplexity is not equal divergence: the mean runs from {_with_interval(least, 'js')} "
            f"({least['setting']}) to {_with_interval(most, 'js')} nats a token ({most['setting']})."
        )
    return text


def _place(runs: pd.DataFrame) -> str:
    ratios = _span(runs["ratio"].round(2), ".2f")
    return f"{len(runs)} model{'s' if len(runs) > 1 else ''} at {ratios} times the dense perplexity"


def _span(values: pd.Series, form: str) -> str:
    return " to ".join(dict.fromkeys(format(end, form) for end in (values.min(), values.max())))


def _with_interval(line: dict, name: str) -> str:
    return interval(line[name], line[f"{name}_lo"], line[f"{name}_hi"], nats)


def _rank_words(association: Association | None) -> str:
    """Which of JS and perplexity ranks the runs better, in a sentence."""
    if association is None or ("rho", "js", LOSS) not in association.estimates:
        return f"There are fewer than {MIN_SETTINGS} comparable settings, so no correlation is given."
    js, other = (association.estimates["rho", name, LOSS].text(coefficient) for name in ("js", "perplexity"))
    gain = association.estimates["gain", "js", LOSS]
    ahead = "JS is ahead" if gain.lo > 0 else "Perplexity is ahead" if gain.hi < 0 else "Neither is clearly ahead"
    return (
        f"{ahead}: the rank correlation with task loss over all runs is {js} for JS and {other} for perplexity "
        f"(difference {gain.text(gain_text)})."
    )


@CHAPTER.figure(SCATTER)
def _scatter(page: Page):
    results, frame = page.results, sample(page.results).losses()
    if frame.empty:
        return "The dense model is above chance on no accuracy task, so there is nothing to compare: ask more items."
    floor, mark = noise_floor(results)[0], {}
    if floor is not None:
        level, (low, high) = sample(results).of("js")[floor], sample(results).interval("js")
        mark = {"lines": {f"noise floor, {nats(level)} nats": level}, "band": (low[floor], high[floor])}
    edge = {"limits": (None, HIGHEST)} if (frame["x_hi"][frame["panel"] == PERPLEXITIES] > HIGHEST).any() else {}
    x = {JS: Axis("JS divergence from the dense model\n(nats per token)", 10, **mark)}
    x[PERPLEXITIES] = Axis("perplexity / dense perplexity,\ngeometric mean over texts", 10, suffix="×", **edge)
    y = Axis(ACCURACY.compared, lines={"": 0.0})
    drawing = scatter(frame, x, y, size=(6.6, 4.0), columns=2, share=(False, True), title="")
    n, words = frame["run_id"].nunique(), _rank_words(associate(results))
    cut = int((frame["x"] > HIGHEST)[frame["panel"] == PERPLEXITIES].sum())
    caption = (
        f"Change of mean accuracy over {len(accuracy_tasks(shared(results)))} tasks, against JS divergence and against "
        f"relative perplexity on {listing(texts_of(results))}; {n} runs, a marker a method. {words} Bars: 95 % "
        "bootstrap intervals over items and windows."
        + (" Line: JS of the dense model in float32, the noise floor, with its interval." if mark else "")
        + (f" Beyond {HIGHEST:,.0f}× and not drawn: {cut}." if cut else "")
    )
    return drawing, caption, f"Accuracy change of {n} runs, scattered over JS divergence and over perplexity. {words}"


@CHAPTER.figure(DOTS)
def _dots(page: Page):
    results, prompted = page.results, reading_prompts(page.results)
    scopes = {ALL: associate(results)} | {f"within {kind}": associate(results, kind) for kind in KINDS[1:]}
    some = prompted is not results and len(prompted.run_ids) > 0
    scopes |= {"asked all tasks": associate(prompted)} if some else {}
    frame, words = dots(scopes), _rank_words(scopes[ALL])
    if frame.empty:
        return words
    base = {scope: one.estimates["rho", "perplexity", LOSS].value for scope, one in scopes.items() if one}
    panels = frame.drop_duplicates("panel").set_index("panel")["scope"]
    axes = {panel: Axis("", ticks=(-0.5, 0, 0.5, 1), lines={"": base[scope]}) for panel, scope in panels.items()}
    look = {"series": "series", "looks": LOOKS, "hollow": frame["series"] == FLIPS, "key": True}
    drawing = forest(frame, axes, size=(6.8, 0.36), **look).meaning(value="Spearman rank correlation over runs")
    drawing.canvas.supxlabel("Spearman rank correlation over runs", fontsize=10)
    caption = (
        f"How well each number ranks the runs by task loss and by answer flips. {words} Vertical line: perplexity with "
        "task loss. Bars: 95 % bootstrap intervals over windows, items and settings; the table has paired differences."
        + (" Only runs that were asked all tasks (right) read all prompts." if some else "")
    )
    alt = f"Rank correlations of {len(PREDICTORS)} numbers with task loss and answer flips, with intervals. {words}"
    return drawing, caption, alt


@CHAPTER.figure(TOKENS)
def _tokens(page: Page):
    results, frame = page.results, curves(page.results)
    if frame.empty:
        return "No run holds the divergence of single tokens, so there is nothing to show."
    groups = frame.drop_duplicates("series").set_index("series")["method"]
    looks = {name: MethodStyle(name, STYLES[m].colour, STYLES[m].marker) for name, m in groups.items() if m in STYLES}
    middle = frame[frame["x"] >= 50].groupby("series")["value"].max()
    x = Axis("share of tokens that diverge at least so much", 10, (50, 10, 1, 0.1), " %", (0.09, 100), reverse=True)
    most, limits = {"most there can be (ln 2)": np.log(2)}, (max(0.3 * middle.min(), 1e-7), 1.5)
    y = Axis("JS divergence of a token (nats)", 10, limits=limits, lines=most)
    look = {"series": "series", "looks": looks, "hollow": frame["series"] == FLOOR, "bare": frame["bare"]}
    drawing = lines(frame.drop(columns="bare"), x, y, size=(6.4, 3.8), **look)
    runs, (floor, why) = matched_runs(results), noise_floor(results)
    ordered = [line for _, part in by_method(runs) for line in part.to_dict("records")]
    ends = [(n["setting"], _with_interval(n, "js"), _with_interval(n, "p99")) for n in ordered]
    parts = [f"{name} {whole} on average, {tail} from the worst 1 % on" for name, whole, tail in ends]
    said = f"Of {_place(runs)}, in nats a token: {'; '.join(parts)}."
    words = f"No noise floor: {why}."
    if floor is not None:
        value, (lo, hi) = sample(results).of("js")[floor], (end[floor] for end in sample(results).interval("js"))
        dense = interval(value, lo, hi, nats)
        words = f"Dashed: the dense model in float32 against itself in bfloat16, {dense} on average."
    caption = (
        f"How divergence is spread over tokens, mean of the quantiles on {listing(texts_of(results))}. {said} Bars: "
        f"95 % bootstrap intervals over windows, at the worst half, tenth and hundredth of tokens. {words}"
    )
    return drawing, caption, f"Curves of per-token divergence, rising towards the worst tokens. {said}"


@CHAPTER.table("correlations")
def _correlation_table(page: Page) -> Table:
    outcomes = [cell for noun in OUTCOMES.values() for cell in (noun, f"{noun}, minus perplexity's")]
    note = (
        "Spearman rank correlations over runs, and differences from that of perplexity over the same runs; in brackets "
        f"95 % intervals of one paired bootstrap over windows, items and settings ({DRAWS:,} draws). Positive: the "
        f"more of this, the more is lost. A scope with fewer than {MIN_SETTINGS} settings is left out."
    )
    return Table(["runs", "number", *outcomes, "n", "settings"], association_lines(page.results, KINDS), note, 2)


@CHAPTER.table("where")
def _where_table(page: Page) -> Table:
    columns = [cell for noun in OUTCOMES.values() for cell in (f"JS minus perplexity, {noun}", "better")]
    note = (
        "Difference of rank correlations with 95 % intervals, as in the table above. Better: after Holm's correction "
        f"over all lines and both outcomes, p < {LEVEL}. Halves by the mean of a run's ranks in perplexity and JS. A "
        f"line with one setting holds runs that differ in calibration only, at least {MIN_RUNS}; others have at least "
        f"{MIN_SETTINGS} settings."
    )
    return Table(["runs", "n", "settings", *columns], where_lines(page.results), note)


@CHAPTER.table("runs")
def _run_table(page: Page) -> Table:
    head = ["JS", "JS, 99th percentile", "KL(dense ‖ compressed)", "top-1 agreement (%)", "perplexity"]
    note = (
        "Means over the texts that all runs share, divergences in nats per token; in brackets 95 % bootstrap intervals "
        "over windows or items. Answer flips: share of items that are right in one of the two models only."
    )
    return Table(["", *head, "accuracy change (points)", "answer flips (%)"], run_lines(page.results), note)
