"""Chapter 2: does divergence from the dense model tell more about the tasks than perplexity does?"""

from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, accuracy_tasks, tasks
from crosscal.results.frame import Results
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, holm, sign_flip_p
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every, mean
from crosscal_book.correlation import (
    ALL,
    DRAWS,
    FLIPS,
    FLOOR,
    LOSS,
    MIN_RUNS,
    MIN_SETTINGS,
    OUTCOMES,
    PREDICTORS,
    PRUNING,
    QUANTIZATION,
    VARIABLES,
    Association,
    associate,
    sample,
    scopes,
    texts_of,
    window_values,
)
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, scatter
from crosscal_book.style import MethodStyle, by_method, style_of
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, interval, listing, p_text, points, times

GAIN = 0.05  # a correlation higher by less than this changes no choice between numbers; set before any run was seen
REST = 0.2  # a partial correlation below this explains less than 4 % of what the other number leaves open; set before
KEYS = [("gain", "js", LOSS), ("gain", "js", FLIPS), ("partial", "js", LOSS), ("prompts", "js", LOSS)]
TOO_FEW = f"there are no {MIN_SETTINGS} compressed settings, all with text and usable tasks in common, to rank"
NO_TASK = "The dense model is above chance on no accuracy task, so there is nothing to compare: ask more items."
HIGHEST = 100.0  # relative perplexity at which the axis is cut
MATCH = 1.05  # perplexities within 5 % of a common one count as equal
CURVES = 6  # more cannot be told apart
PERCENTILES = (50, 90, 99)
SHARES = (0.5, 0.1, 0.01, 0.001)
JS_UNIT = "JS divergence of a token (nats)"
LOOKS = {OUTCOMES[LOSS]: MethodStyle("with task loss", "#0067A5", "o")}
LOOKS[OUTCOMES[FLIPS]] = MethodStyle("with answer flips (open)", "#B84A00", "s")
SCATTER, DOTS, TOKENS = "fig-loss-divergence", "fig-correlations", "fig-token-divergence"
FACTS = ["run_id", "method", "target", "calibration", "weight"]


def _rho(value: float) -> str:
    """A correlation with its sign.

    >>> _rho(-0.043)
    '−0.04'
    """
    return f"{value:+.2f}".replace("-", "−")


def _gain(value: float) -> str:
    """A difference of two correlations.

    >>> _gain(0.0151)
    '+0.015'
    """
    return f"{value:+.3f}".replace("-", "−")


def _nats(value: float) -> str:
    """A divergence, to two or three digits.

    >>> _nats(0.1602), _nats(0.009)
    ('0.160', '0.0090')
    """
    return f"{value:.3f}" if value >= 0.01 else f"{value:#.2g}"


def _note(page: Page) -> list[str]:
    """Which number is best, where JS wins and where not, and what its mean hides."""
    return [_best_sentence(page), _where_sentence(page), _tail_sentence(page)]


CHAPTER = Chapter("divergence", note=_note)

# ------------------------------------------------------------------------------------------ claims


@lru_cache(maxsize=8)
def _prompted(page: Page) -> Results:
    """The runs that read the tasks' prompts, which are those that were asked all tasks."""
    ids = set(page.every.only(metric="perplexity", domain=PROMPTS)["run_id"]) - {page.every.dense_id}
    return page.results if len(ids) + 1 == len(page.every.run_ids) else page.every.subset(sorted(ids)).common()


def _correlation_rows(results: Results, key: tuple[str, str, str]) -> pd.DataFrame:
    """One correlation as a claim's row; Holm's correction runs over those of the chapter that these runs can tell."""
    association = associate(results)
    estimates = association.estimates if association else {}
    if key not in estimates:
        return pd.DataFrame()
    keys = [one for one in KEYS if one in estimates]
    corrected = dict(zip(keys, holm([estimates[one].p for one in keys]), strict=True))
    size = f"{association.n} runs in {association.settings} settings"
    return pd.DataFrame([{**vars(estimates[key]), "p_holm": corrected[key], "size": size, "found": association}])


def _tested(row: pd.Series, write) -> str:
    return f"{interval(row['value'], row['lo'], row['hi'], write)} ({p_text(row['p_holm'])})"


def _more_effect(page: Page, rows: pd.DataFrame, outcome: str) -> str:
    row = rows.iloc[0]
    js, other = (row["found"].estimates["rho", name, outcome].text(_rho) for name in ("js", "perplexity"))
    within = [associate(page.results, kind) for kind in (PRUNING, QUANTIZATION)]
    key = ("gain", "js", outcome)
    parts = [f"within {a.scope} {a.estimates[key].text(_gain)}" for a in within if a and key in a.estimates]
    effect = (
        f"over {row['size']} the rank correlation with {OUTCOMES[outcome]} is {js} for JS and {other} for perplexity, "
        f"a difference of {_tested(row, _gain)}"
    )
    return "; ".join([effect, *parts])


def _more_brief(rows: pd.DataFrame, outcome: str) -> str:
    row = rows.iloc[0]
    js, other = (row["found"].estimates["rho", name, outcome].text(_rho) for name in ("js", "perplexity"))
    difference = interval(row["value"], row["lo"], row["hi"], _gain)
    return f"rank correlation {js} for JS, {other} for perplexity; difference {difference}"


for outcome, noun in ((LOSS, "how much accuracy is lost"), (FLIPS, "how many answers change")):
    CHAPTER.claim(
        f"js-tells-more-{outcome}",
        f"JS divergence tells more than perplexity about {noun}",
        lambda page, outcome=outcome: _correlation_rows(page.results, ("gain", "js", outcome)),
        mean("better", by=GAIN),
        on=ACCURACY,
        evidence=DOTS,
        paper="khanal2024",
        says=lambda page, rows, outcome=outcome: _more_effect(page, rows, outcome),
        brief=lambda _, rows, outcome=outcome: _more_brief(rows, outcome),
        missing=TOO_FEW,
    )


def _rest_effect(_: Page, rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    reverse = row["found"].estimates["partial", "perplexity", LOSS].text(_rho)
    return (
        f"over {row['size']} the rank correlation of JS with task loss at equal perplexity is {_tested(row, _rho)}; "
        f"that of perplexity at equal JS is {reverse}"
    )


def _prompts_effect(page: Page, rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    own, other = (row["found"].estimates["rho", name, LOSS].text(_rho) for name in ("js_prompts", "js"))
    return (
        f"over {row['size']} the rank correlation with task loss is {own} on the prompts and {other} on "
        f"{listing(texts_of(_prompted(page)))}, a difference of {_tested(row, _gain)}"
    )


CHAPTER.claim(
    "js-tells-the-rest",
    "At equal perplexity JS divergence still tells which model loses more",
    lambda page: _correlation_rows(page.results, ("partial", "js", LOSS)),
    mean("better", by=REST),
    on=ACCURACY,
    evidence=SCATTER,
    says=_rest_effect,
    missing=TOO_FEW,
)
CHAPTER.claim(
    "prompts-tell-more",
    "JS divergence on the tasks' own prompts tells more than on other text",
    lambda page: _correlation_rows(_prompted(page), ("prompts", "js", LOSS)),
    mean("better", by=GAIN),
    on=ACCURACY,
    evidence=DOTS,
    says=_prompts_effect,
    missing=TOO_FEW,
)


def _floor_rows(page: Page) -> pd.DataFrame:
    """Every compressed run's JS over the noise floor's, paired over windows; sign flips where a run diverges less."""
    sampled = sample(page.results)
    floor, js = sampled.floor, sampled.values[VARIABLES.index("js")]
    if floor is None:
        return pd.DataFrame()
    runs, above = sampled.runs[sampled.compressed], js[sampled.compressed] / js[floor]
    lo, hi = np.percentile(above[:, 1:], [2.5, 97.5], axis=1)
    ids, texts = sampled.runs["run_id"], texts_of(page.results)

    def p_less(row: int) -> float:
        one, other = (
            [window_values(page.results, ids[i], t, PREDICTORS["js"].measure) for t in texts] for i in (row, floor)
        )
        return sign_flip_p([a - b for a, b in zip(one, other, strict=True)])

    p_no = holm([p_less(i) if a < 1 else 1.0 for i, a in zip(runs.index, above[:, 0], strict=True)])
    p_yes = np.where(lo > 1, 0.0, 1.0)  # each interval must lie above 1, so nothing is to be corrected
    tested = {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no, "p_no_holm": p_no}
    return runs.assign(value=above[:, 0], lo=lo, hi=hi, name=runs["setting"], **tested).reset_index(drop=True)


def _no_floor(page: Page) -> str:
    sampled = sample(page.results)
    if sampled.compressed.all():
        return "the dense model was not run in float32, so the noise of rounding is not known"
    if not sampled.compressed.any() or not np.isfinite(sampled.of("js")).all():
        return "no compressed run has a divergence to compare with the noise of rounding"
    return "the dense model itself was run in float32, so there is no noise of rounding to compare with"


def _floor_effect(page: Page, rows: pd.DataFrame) -> str:
    sampled, mildest = sample(page.results), rows.loc[rows["value"].idxmin()]
    ratio = interval(mildest["value"], mildest["lo"], mildest["hi"], lambda v: f"{v:.2f}" if v < 10 else f"{v:,.0f}")
    effect = (
        f"of {len(rows)} runs the mildest, {mildest['setting']}, has {ratio} times the JS divergence of the noise "
        f"floor, which is {_nats(sampled.of('js')[sampled.floor])} nats a token"
    )
    share = sampled.of(FLIPS)[sampled.floor]
    if np.isfinite(share):
        ends = (100 * end[sampled.floor] for end in sampled.interval(FLIPS))
        effect += "; rounding alone changes {:.1f} % [{:.1f}, {:.1f}] of the answers".format(100 * share, *ends)
    return effect


CHAPTER.claim(
    "above-the-floor",
    "Even the mildest compression stands out from the rounding of bfloat16",
    _floor_rows,
    every("better"),
    on=ACCURACY,
    evidence=TOKENS,
    says=_floor_effect,
    missing=_no_floor,
)

# ------------------------------------------------------------------------------------------ which number, and where


def _best_sentence(page: Page) -> str:
    """Which number has the highest rank correlation with each outcome, and how far ahead of perplexity it is."""
    association = associate(page.results)
    if association is None:
        return ""
    estimates, parts = association.estimates, []
    for outcome, noun in OUTCOMES.items():
        rhos = {name: rho for name in PREDICTORS if (rho := estimates.get(("rho", name, outcome)))}
        best = max(rhos, key=lambda name: rhos[name].value)
        gain = estimates.get(("gain", best, outcome))
        part = f"{PREDICTORS[best].label} with {noun}, {rhos[best].text(_rho)}"
        parts.append(part + (f" ({gain.text(_gain)} against perplexity)" if gain else ""))
    table = tasks(page.results)
    left_out = list(table.loc[~table["usable"], "eval_set"])
    more = f" Left out, because the dense model is not above chance: {listing(left_out)}." if left_out else ""
    return (
        f"Of {len(rhos)} numbers the highest rank correlations over all runs are those of {' and '.join(parts)}. The "
        f"best of several looks better than it is, so the gain of a number picked afterwards is no test.{more}"
    )


@lru_cache(maxsize=8)
def _where(page: Page) -> pd.DataFrame:
    """The gain of JS over perplexity in every scope that can carry one, with Holm's p over scopes and outcomes.

    Of scopes with the same runs only the first is there.
    """
    rows, seen = [], set()
    for scope, mask in scopes(sample(page.results)).items():
        association = None if mask.tobytes() in seen else associate(page.results, scope)
        seen.add(mask.tobytes())
        for outcome in OUTCOMES if association else ():
            if gain := association.estimates.get(("gain", "js", outcome)):
                rows.append({"scope": scope, "outcome": outcome, **vars(gain)})
    frame = pd.DataFrame(rows, columns=["scope", "outcome", "value", "lo", "hi", "n", "p"])
    return frame.assign(p_holm=holm(frame["p"]) if len(frame) else frame["p"])


def _better(frame: pd.DataFrame) -> np.ndarray:
    """Which of the two numbers is better in each line, after Holm's correction."""
    sure = (frame["p_holm"] < LEVEL) & ((frame["lo"] > 0) | (frame["hi"] < 0))
    return np.where(sure, np.where(frame["value"] > 0, "JS", "perplexity"), "cannot be told")


def _where_sentence(page: Page) -> str:
    frame = _where(page)
    if frame.empty:
        return ""
    parts = []
    for word, winner in (("ahead of", "JS"), ("behind", "perplexity")):
        won = frame[_better(frame) == winner]
        names = [f"{line.scope} ({OUTCOMES[line.outcome]})" for line in won.itertuples()]
        parts.append(f"JS is {word} perplexity in {len(names)}" + (f": {listing(names)}" if names else ""))
    return (
        f"Of {len(frame)} comparisons, one for each group of runs and outcome, {'; '.join(parts)} (Holm-corrected "
        f"p < {LEVEL}, see the second table)."
    )


# ------------------------------------------------------------------------------------------ single tokens


def _percentile(page: Page, run_id: str, percent: int) -> tuple[float, float, float]:
    """A percentile of JS over tokens, as the mean over texts, with its 95 % interval; texts are independent."""
    rows = page.results.only(run_id=run_id, metric=f"js_divergence_p{percent}")
    rows = rows[rows["eval_set"].isin(texts_of(page.results))]
    if rows.empty:
        return (np.nan,) * 3
    value = rows["value"].mean()
    below, above = (np.sqrt(((rows["value"] - rows[end]) ** 2).sum()) / len(rows) for end in ("lo", "hi"))
    return value, value - below, value + above


@lru_cache(maxsize=8)
def _matched(page: Page) -> pd.DataFrame:
    """One run a method, all of nearly equal perplexity: the perplexity that most methods come near.

    Only runs whose perplexity rose visibly (beyond `KEPT`) count, if there are any: undamaged models are all alike.
    Columns: those of `sample`, `ratio` of perplexity, mean `js`, and `p50`, `p90`, `p99` of JS over tokens, the last
    three as means over texts, with `_lo` and `_hi`.
    """
    sampled, items = sample(page.results), page.results.items
    js, keys = sampled.interval("js"), [f"{text} tokens" for text in texts_of(page.results)]
    with_tokens = [run_id for run_id, entries in items.items() if any(key in entries for key in keys)]
    runs = sampled.runs.assign(ratio=np.exp(sampled.of("perplexity")), js=sampled.of("js"), js_lo=js[0], js_hi=js[1])
    runs = runs[sampled.compressed & np.isfinite(runs["js"]) & runs["run_id"].isin(with_tokens)]
    runs = runs[runs["ratio"] > KEPT] if (runs["ratio"] > KEPT).any() else runs
    best: list = []
    width = np.inf
    for centre in runs["ratio"]:
        gap = np.log(runs["ratio"] / centre).abs()
        nearest = gap[gap <= np.log(MATCH)].groupby(runs["method"]).idxmin()
        chosen = sorted(nearest, key=lambda i: gap[i])[:CURVES]
        if (-len(chosen), gap[chosen].max()) < (-len(best), width):
            best, width = chosen, gap[chosen].max()
    matched = runs.loc[best]
    for percent in PERCENTILES:
        ends = [_percentile(page, run_id, percent) for run_id in matched["run_id"]]
        matched = matched.assign(**{f"p{percent}{e}": [x[n] for x in ends] for n, e in enumerate(("", "_lo", "_hi"))})
    return matched


def _curve(page: Page, run_id: str) -> pd.DataFrame:
    """Shares of tokens (x), and the divergence that such a share reaches: quantiles, as means over texts."""
    items = page.results.items[run_id]
    entries = [items[f"{text} tokens"] for text in texts_of(page.results) if f"{text} tokens" in items]
    x = 1 - np.array(entries[0]["quantile"], dtype=float)
    frame = pd.DataFrame({"x": x, "value": np.mean([entry["js_divergence"] for entry in entries], axis=0)})
    return frame[(x < 1) & (x > 0)]


def _with_interval(run, name: str) -> str:
    return interval(run[name], run[f"{name}_lo"], run[f"{name}_hi"], _nats)


def _range(values: pd.Series, form: str) -> str:
    ends = [format(values.min(), form), format(values.max(), form)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _place(runs: pd.DataFrame) -> str:
    where = _range(runs["ratio"].map(lambda ratio: round(ratio, 2)), ".2f")
    return f"{len(runs)} model{'s' if len(runs) > 1 else ''} at {where} times the dense perplexity"


def _tail_sentence(page: Page) -> str:
    """What the mean hides, for the takeaway."""
    runs = _matched(page)
    if runs.empty or runs["p99"].isna().all():
        return ""
    fold, middle = runs["p99"] / runs["js"], runs["p50"] / runs["js"]
    least, most = (runs.loc[where] for where in (runs["js"].idxmin(), runs["js"].idxmax()))
    text = (
        f"The mean hides a tail ([evidence](#{TOKENS})): in {_place(runs)} the worst hundredth of tokens begins at "
        f"{_range(fold, '.1f')} times a model's mean JS, the median token is at {_range(middle, '.2f')} times it."
    )
    more = (
        f" Equal perplexity is not equal divergence: the mean runs from {_with_interval(least, 'js')} "
        f"({least['setting']}) to {_with_interval(most, 'js')} nats a token ({most['setting']})."
    )
    return text + more * (len(runs) > 1)


# ------------------------------------------------------------------------------------------ figures


def _rank_words(association: Association | None) -> str:
    """Which of JS and perplexity ranks the runs better, in a sentence."""
    if association is None or ("rho", "js", LOSS) not in association.estimates:
        return f"There are fewer than {MIN_SETTINGS} comparable settings, so no correlation is given."
    js, other = (association.estimates["rho", name, LOSS].text(_rho) for name in ("js", "perplexity"))
    gain: Estimate = association.estimates["gain", "js", LOSS]
    ahead = "JS is ahead" if gain.lo > 0 else "Perplexity is ahead" if gain.hi < 0 else "Neither is clearly ahead"
    return (
        f"{ahead}: the rank correlation with task loss over all runs is {js} for JS and {other} for perplexity "
        f"(difference {gain.text(_gain)})."
    )


@CHAPTER.figure(SCATTER)
def _scatter(page: Page):
    """Change of mean accuracy against JS and against relative perplexity, one point a run, coloured by method."""
    sampled = sample(page.results)
    kept = sampled.compressed & np.isfinite(sampled.of(LOSS)) & np.isfinite(sampled.of("js"))
    if not kept.any():
        return NO_TASK
    runs, floor = sampled.runs[kept], sampled.floor
    loss, (lo, hi) = sampled.of(LOSS)[kept], (end[kept] for end in sampled.interval(LOSS))
    frame, labels = runs[FACTS].assign(value=-100 * loss, lo=-100 * hi, hi=-100 * lo), {}
    labels["js"] = "JS divergence from the dense model\n(nats per token)"
    labels["perplexity"] = PERPLEXITY.compared + ",\ngeometric mean over texts"
    parts = []
    for name in labels:
        scale = np.exp if name == "perplexity" else np.asarray
        ends = [scale(end[kept]) for end in (sampled.of(name), *sampled.interval(name))]
        parts.append(frame.assign(panel=name, **dict(zip(("x", "x_lo", "x_hi"), ends, strict=True))))
    frame = pd.concat(parts, ignore_index=True)
    highest = frame.loc[frame["panel"] == "perplexity", "x"].max()
    x = {"perplexity": Axis(labels["perplexity"], 10, suffix="×", limits=(0.97, min(1.3 * highest, HIGHEST)))}
    x["js"] = Axis(labels["js"], 10)
    if floor is not None:
        ends = tuple(float(end[floor]) for end in sampled.interval("js"))
        x["js"] = Axis(labels["js"], 10, lines={"noise floor": float(sampled.of("js")[floor])}, band=ends)
    words, cut = _rank_words(associate(page.results)), int((frame["x"][frame["panel"] == "perplexity"] > HIGHEST).sum())
    caption = (
        f"Change of mean accuracy over {len(accuracy_tasks(page.results))} tasks, against JS divergence and against "
        f"relative perplexity on {listing(texts_of(page.results))}; {len(runs)} runs, a marker a method. {words} Bars: "
        "95 % bootstrap intervals over items and windows."
        + " Noise floor: JS of the dense model in float32, with its interval." * (floor is not None)
        + f" Beyond {HIGHEST:,.0f}× and not drawn on the right: {cut}." * bool(cut)
    )
    y = Axis(ACCURACY.compared, lines={"": 0.0})
    drawing = scatter(frame, x, y, columns=2, size=(6.6, 4.0), share=(False, True), title="")
    return drawing, caption, f"Accuracy change of {len(runs)} runs, scattered over JS and over perplexity. {words}"


@CHAPTER.figure(DOTS)
def _dots(page: Page):
    """The rank correlation of every number with task loss and answer flips, in all runs and within kinds of methods."""
    groups = {ALL: associate(page.results)}
    groups |= {kind: associate(page.results, kind) for kind in (PRUNING, QUANTIZATION)}
    prompted = _prompted(page)
    some = prompted is not page.results and len(prompted.run_ids) > 0
    groups |= {"all tasks": associate(prompted)} if some else {}
    rows, axes = [], {}
    for group, association in groups.items():
        size = f"{association.n} runs,\n{association.settings} settings" if association else ""
        for key, rho in association.estimates.items() if association else ():
            if key[0] == "rho":
                line = {"panel": group, "name": PREDICTORS[key[1]].label, "outcome": OUTCOMES[key[2]], **vars(rho)}
                rows.append({k: v for k, v in line.items() if k != "p"})
                level = association.estimates["rho", "perplexity", LOSS].value
                axes[group] = Axis(size, ticks=(-0.5, 0, 0.5, 1), limits=(None, 1.03), lines={"": level})
    words = _rank_words(groups[ALL])
    if not rows:
        return words
    missing = [group for group, association in groups.items() if association is None]
    caption = (
        f"How well each number ranks the runs by task loss and by answer flips (Spearman). {words} Vertical line: "
        "perplexity with task loss. Bars: 95 % bootstrap intervals over windows, items and settings; the table has "
        "paired differences."
        + " Only runs that were asked all tasks (right) read all prompts." * some
        + f" Fewer than {MIN_SETTINGS} settings: {listing(missing)}." * bool(missing)
    )
    frame = pd.DataFrame(rows)
    drawing = forest(frame, axes, size=(6.8, 0.38), series="outcome", looks=LOOKS, key=True,
                     hollow=frame["outcome"] == OUTCOMES[FLIPS])  # fmt: skip
    alt = f"Rank correlations of {len(PREDICTORS)} numbers with task loss and answer flips, with intervals. {words}"
    return drawing, caption, alt


@CHAPTER.figure(TOKENS)
def _token_divergence(page: Page):
    """JS over tokens, from the median to the worst, for models of equal perplexity, with the noise floor below."""
    runs, sampled = _matched(page), sample(page.results)
    if runs.empty:
        return "No run holds the divergence of single tokens, so there is nothing to show."
    parts, looks = [], {}
    for method, part in by_method(runs):
        run, style = part.iloc[0], style_of(method)
        looks[run["setting"]] = MethodStyle(run["setting"], style.colour, style.marker)
        own = [_curve(page, run["run_id"]).assign(part="curve")]
        for percent in PERCENTILES:
            ends = {end or "value": run[f"p{percent}{e}"] for end, e in (("", ""), ("lo", "_lo"), ("hi", "_hi"))}
            own.append(pd.DataFrame([{"x": 1 - percent / 100, **ends, "part": "percentile"}]))
        facts = run[[*FACTS, "setting"]].to_dict()
        parts += [one.assign(**facts) for one in own]
    if sampled.floor is not None:
        dense = sampled.runs.iloc[sampled.floor]
        looks["noise floor"] = MethodStyle("noise floor", "#555555", "*")
        parts.append(_curve(page, dense["run_id"]).assign(run_id=dense["run_id"], setting="noise floor", part="curve"))
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[(frame["x"] <= 0.96) & (frame["value"] > 0)].drop(columns="method").sort_values("x", ascending=False)
    told = [
        f"{run['setting']} {_with_interval(run, 'js')} on average, {_with_interval(run, 'p99')} from the worst 1 % on"
        for _, part in by_method(runs)
        for run in part.to_dict("records")
    ]
    words, floor = f"Of {_place(runs)}, in nats a token: {'; '.join(told)}.", sampled.floor
    rounding = ""
    if floor is not None:
        rounding = interval(*(v[floor] for v in (sampled.of("js"), *sampled.interval("js"))), _nats)
        rounding = f"Noise floor: the dense model in float32 against itself in bfloat16, {rounding} on average."
    caption = (
        f"How divergence is spread over tokens, mean of the quantiles on {listing(texts_of(page.results))}. {words} "
        "Bars: 95 % bootstrap intervals over windows, at the worst half, tenth and hundredth of tokens. "
        + (rounding or f"No noise floor: {_no_floor(page)}.")
    )
    x = Axis("share of tokens that diverge at least so much", 10, ticks=SHARES, reverse=True)
    y = Axis(JS_UNIT, 10, limits=(None, 1.5), lines={"most there can be (ln 2)": float(np.log(2))})
    curve = frame["part"] == "curve"
    drawing = lines(frame, x, y, size=(6.4, 3.8), series="setting", looks=looks, line=frame["setting"].where(curve, ""))
    return drawing, caption, f"Curves of per-token divergence, rising towards the worst tokens. {words}"


# ------------------------------------------------------------------------------------------ tables


@CHAPTER.table("correlations")
def _correlation_table(page: Page) -> Table:
    """Every number's rank correlation with task loss and answer flips, and its difference from perplexity's."""
    body = []
    for scope in (ALL, PRUNING, QUANTIZATION):
        association = associate(page.results, scope)
        for name, asked in PREDICTORS.items() if association else ():
            if ("rho", name, LOSS) not in association.estimates:
                continue
            cells = []
            for outcome in OUTCOMES:
                gain = association.estimates.get(("gain", name, outcome))
                cells.append(association.estimates["rho", name, outcome].text(_rho))
                cells.append(gain.text(_gain) if gain else "0")
            body.append([scope, asked.label, *cells, f"{association.n}", f"{association.settings}"])
    outcomes = [cell for noun in OUTCOMES.values() for cell in (noun, f"{noun}, minus perplexity's")]
    note = (
        "Spearman rank correlations over runs, and differences from that of perplexity over the same runs; in brackets "
        f"95 % intervals of one paired bootstrap over windows, items and settings ({DRAWS:,} draws). Positive: the "
        f"more of this, the more is lost. A scope with fewer than {MIN_SETTINGS} settings is left out."
    )
    return Table(["runs", "number", *outcomes, "n", "settings"], body, note, 2)


@CHAPTER.table("where")
def _where_table(page: Page) -> Table:
    """Where JS ranks runs better than perplexity, and where it does not: every group of runs."""
    frame, masks, body = _where(page), scopes(sample(page.results)), []
    frame = frame.assign(better=_better(frame) if len(frame) else [])
    for scope, part in frame.groupby("scope", sort=False):
        cells = []
        for outcome in OUTCOMES:
            line = part[part["outcome"] == outcome].iloc[0]
            cells += [interval(line["value"], line["lo"], line["hi"], _gain), line["better"]]
        settings = sample(page.results).runs.loc[masks[scope], "setting"].nunique()
        body.append([scope, f"{masks[scope].sum()}", f"{settings}", *cells])
    columns = [cell for noun in OUTCOMES.values() for cell in (f"JS minus perplexity, {noun}", "better")]
    note = (
        "Difference of rank correlations with 95 % intervals, as in the table above. Better: after Holm's correction "
        f"over all lines and both outcomes, p < {LEVEL}. Halves by the mean of a run's ranks in perplexity and JS. A "
        f"line with one setting holds runs that differ in calibration only, at least {MIN_RUNS}; others have at least "
        f"{MIN_SETTINGS} settings."
    )
    return Table(["runs", "n", "settings", *columns], body, note)


@CHAPTER.table("runs")
def _run_table(page: Page) -> Table:
    """Every run, the least divergent first: divergence, perplexity and what became of the tasks."""
    sampled, body = sample(page.results), []
    runs = sampled.runs.assign(js=sampled.of("js")).sort_values("js", kind="stable")
    shown = {"js": _nats, "kl": _nats, "top1": lambda v: f"{-100 * v:.1f}", "perplexity": lambda v: times(np.exp(v))}
    shown |= {LOSS: lambda v: points(0.0 - v), FLIPS: lambda v: f"{100 * v:.1f}"}
    ends = {name: sampled.interval(name) for name in shown}
    for row, run in runs.iterrows():
        cells = {}
        for name, write in shown.items():
            value, lo, hi = sampled.of(name)[row], ends[name][0][row], ends[name][1][row]
            lo, hi = (hi, lo) if name in ("top1", LOSS) else (lo, hi)  # written with the opposite sign
            cells[name] = interval(value, lo, hi, write) if np.isfinite(value) else ""
        tail = _percentile(page, run["run_id"], 99)
        worst = interval(*tail, _nats) if np.isfinite(tail[0]) else ""
        body.append([_run_label(run, runs), cells.pop("js"), worst, *cells.values()])
    head = ["JS", "JS, 99th percentile", "KL(dense ‖ compressed)", "top-1 agreement (%)", "perplexity"]
    note = (
        "Means over the texts that all runs share, divergences in nats per token; in brackets 95 % bootstrap intervals "
        "over windows or items. Answer flips: share of items that are right in one of the two models only."
    )
    return Table(["", *head, "accuracy change (points)", "answer flips (%)"], body, note)


def _run_label(run: pd.Series, runs: pd.DataFrame) -> str:
    """A run's setting, its calibration text, and number, length and draw of the windows where not the usual ones."""
    if run["kind"] == FLOOR:
        return "dense model in float32 (noise floor)"
    if not run["calibration"]:
        return run["setting"]
    calibrated = runs[runs["calibration"] != ""]
    parts = [run["calibration"] + (f" (last {run['weight']:.2g})" if "+" in run["calibration"] else "")]
    sizes = calibrated["n_windows"].astype(str) + " × " + calibrated["window"].astype(str)
    size = f"{run['n_windows']} × {run['window']}"
    parts += [size] if size != sizes.mode().iloc[0] else []
    parts += [f"draw {run['seed']}"] if run["seed"] != calibrated["seed"].mode().iloc[0] else []
    return f"{run['setting']}, {', '.join(parts)}"
