"""Chapter 2: does divergence from the dense model tell more about the tasks than perplexity does?"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, accuracy_tasks, tasks
from crosscal.results.frame import Results
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every, mean
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, scatter
from crosscal_book.numbers import correlation, tokens
from crosscal_book.numbers.correlation import ALL, FLIPS, KINDS, LOSS, OUTCOMES, PREDICTORS, associate, sample, texts_of
from crosscal_book.numbers.tokens import PERCENTILES, matched, nats, noise_floor
from crosscal_book.style import MethodStyle, by_method, style_of
from crosscal_book.tables import Table
from crosscal_book.words import cell, listing, points, times

GAIN = 0.05  # a correlation higher by less than this changes no choice between numbers; set before any run was seen
REST = 0.2  # a partial correlation below this explains less than 4 % of what the other number leaves open; set before
FEW = correlation.MIN_SETTINGS
TOO_FEW = f"there are no {FEW} compressed settings, all with text and usable tasks in common, to rank"
HIGHEST = 100.0  # relative perplexity at which the axis is cut
LOOKS = {OUTCOMES[LOSS]: MethodStyle("with task loss", "#0067A5", "o")}
LOOKS[OUTCOMES[FLIPS]] = MethodStyle("with answer flips (open)", "#B84A00", "s")
SCATTER, DOTS, TOKENS = "fig-loss-divergence", "fig-correlations", "fig-token-divergence"
FACTS = ["run_id", "method", "target", "calibration", "weight"]


def _gain(value: float) -> str:
    return correlation.signed(value, 3)


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


CHAPTER = Chapter(
    "divergence", lambda page: [say(page.results) for say in (_best_sentence, _where_sentence, _tail_sentence)]
)


@lru_cache(maxsize=8)
def _prompted(page: Page) -> Results:
    """The runs that read the tasks' prompts, which are those that were asked all tasks."""
    ids = set(page.every.only(metric="perplexity", domain=PROMPTS)["run_id"]) - {page.every.dense_id}
    return page.results if len(ids) + 1 == len(page.every.run_ids) else page.every.subset(sorted(ids)).common()


def _claim(name: str, sentence: str, key: tuple, beside: tuple, of: Callable = lambda page: page.results, **fields):
    """Add a claim about one correlation, with those `beside` it as texts `a` and `b`."""

    def rows(page: Page) -> pd.DataFrame:
        found = associate(of(page))
        if key not in found.estimates:
            return pd.DataFrame()
        parts = [associate(page.results, kind) for kind in KINDS[1:]]
        within = "".join(f"; within {part.scope} {part.text(*key)}" for part in parts if key in part.estimates)
        facts = {"name": ALL, "size": f"{found.n} runs in {found.settings} settings", "within": within}
        facts |= {name: found.text(*one) for name, one in zip("ab", beside, strict=False)}
        return pd.DataFrame([vars(found.estimates[key]) | facts | {"texts": listing(texts_of(of(page)))}])

    rule, write = (
        (mean("better", by=REST), correlation.signed) if key[0] == "partial" else (mean("better", by=GAIN), _gain)
    )
    CHAPTER.claim(name, sentence, rows, rule, on=ACCURACY, write=write, family="ranks", missing=TOO_FEW, **fields)


for outcome, noun in ((LOSS, "how much accuracy is lost"), (FLIPS, "how many answers change")):
    _claim(
        f"js-tells-more-{outcome}",
        f"JS divergence tells more than perplexity about {noun}",
        ("gain", "js", outcome),
        (("rho", "js", outcome), ("rho", "perplexity", outcome)),
        evidence=DOTS,
        paper="khanal2024",
        says=f"over {{size}} the rank correlation with {OUTCOMES[outcome]} is {{a}} for JS and {{b}} for perplexity, a "
        "difference of {estimate} ({p}){within}",
        brief="rank correlation {a} for JS, {b} for perplexity; difference {estimate}",
    )
_claim(
    "js-tells-the-rest",
    "At equal perplexity JS divergence still tells which model loses more",
    ("partial", "js", LOSS),
    (("partial", "perplexity", LOSS),),
    evidence=SCATTER,
    says="over {size} the rank correlation of JS with task loss at equal perplexity is {estimate} ({p}); that of "
    "perplexity at equal JS is {a}",
)
_claim(
    "prompts-tell-more",
    "JS divergence on the tasks' own prompts tells more than on other text",
    ("prompts", "js", LOSS),
    (("rho", "js_prompts", LOSS), ("rho", "js", LOSS)),
    of=_prompted,
    evidence=DOTS,
    says="over {size} the rank correlation with task loss is {a} on the prompts and {b} on {texts}, a difference of "
    "{estimate} ({p})",
)


CHAPTER.claim(
    "above-the-floor",
    "Even the mildest compression stands out from the rounding of bfloat16",
    lambda page: tokens.above_floor(page.results),
    every("better"),
    on=ACCURACY,
    write=lambda ratio: f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}",
    evidence=TOKENS,
    says="of {count} runs the mildest, {name}, has {estimate} times the JS divergence of the noise floor, which is "
    "{floor} nats a token{rounding}",
    missing=lambda page: noise_floor(page.results)[1],
)


def _best_sentence(results: Results) -> str:
    """Which number has the highest rank correlation with each outcome, and how far ahead of perplexity it is."""
    found, table, parts = associate(results), tasks(results), []
    if not found.estimates:
        return ""
    for outcome, noun in OUTCOMES.items():
        rhos = {key[1]: rho.value for key, rho in found.estimates.items() if (key[0], key[2]) == ("rho", outcome)}
        best = max(rhos, key=lambda name: rhos[name])
        ahead = found.text("gain", best, outcome)
        more = f" ({ahead} against perplexity)" if ahead else ""
        parts.append(f"{PREDICTORS[best].label} with {noun}, {found.text('rho', best, outcome)}{more}")
    left_out = listing(list(table.loc[~table["usable"], "eval_set"]))
    more = f" Left out, because the dense model is not above chance: {left_out}." if left_out else ""
    return (
        f"Of {len(rhos)} numbers the highest rank correlations over all runs are those of {' and '.join(parts)}. The "
        f"best of several looks better than it is, so the gain of a number picked afterwards is no test.{more}"
    )


def _where_sentence(results: Results) -> str:
    """In which scopes JS is ahead of perplexity, and in which behind."""
    found, parts = correlation.where(results).to_dict("records"), []
    for word, winner in (("ahead of", "JS"), ("behind", "perplexity")):
        won = [f"{n['scope']} ({OUTCOMES[n['outcome']]})" for n in found if correlation.better(n) == winner]
        parts.append(f"JS is {word} perplexity in {len(won)}" + (f": {listing(won)}" if won else ""))
    text = f"Of {len(found)} comparisons, one for each group of runs and outcome, {'; '.join(parts)} (Holm-corrected "
    return f"{text}p < {LEVEL}, see the second table)." if found else ""


def _range(values: pd.Series, form: str) -> str:
    return " to ".join(dict.fromkeys(format(end, form) for end in (values.min(), values.max())))


def _place(runs: pd.DataFrame) -> str:
    where = _range(runs["ratio"].round(2), ".2f")
    return f"{len(runs)} model{'s' if len(runs) > 1 else ''} at {where} times the dense perplexity"


def _tail_sentence(results: Results) -> str:
    """What the mean hides."""
    runs = matched(results)
    if runs.empty or runs["p99"].isna().all():
        return ""
    least, *_, most = runs.sort_values("js").iloc[[0, -1]].to_dict("records")
    text = (
        f"The mean hides a tail ([evidence](#{TOKENS})): in {_place(runs)} the worst hundredth of tokens begins at "
        f"{_range(runs['p99'] / runs['js'], '.1f')} times a model's mean JS, the median token is at "
        f"{_range(runs['p50'] / runs['js'], '.2f')} times it."
    )
    more = (
        f" Equal perplexity is not equal divergence: the mean runs from {cell(least, 'js', nats)} "
        f"({least['setting']}) to {cell(most, 'js', nats)} nats a token ({most['setting']})."
    )
    return text + more * (len(runs) > 1)


def _rank_words(found: correlation.Association) -> str:
    """Which of JS and perplexity ranks the runs better."""
    gain = found.estimates.get(("gain", "js", LOSS))
    if gain is None:
        return f"There are fewer than {FEW} comparable settings, so no correlation is given."
    ahead = "JS is ahead" if gain.lo > 0 else "Perplexity is ahead" if gain.hi < 0 else "Neither is clearly ahead"
    return (
        f"{ahead}: the rank correlation with task loss over all runs is {found.text('rho', 'js', LOSS)} for JS and "
        f"{found.text('rho', 'perplexity', LOSS)} for perplexity (difference {found.text('gain', 'js', LOSS)})."
    )


@CHAPTER.figure(SCATTER)
def _scatter(page: Page):
    runs, (floor, _), parts = sample(page.results).runs, noise_floor(page.results), []
    runs = runs[runs["compressed"] & np.isfinite(runs[LOSS]) & np.isfinite(runs["js"])]
    if runs.empty:
        return "The dense model is above chance on no accuracy task, so there is nothing to compare: ask more items."
    for name, scale in (("js", np.asarray), ("perplexity", np.exp)):
        ends = {f"x{end}": scale(runs[f"{name}{end}"]) for end in ("", "_lo", "_hi")}
        ends |= {end or "value": 100 * runs[f"change{end and '_'}{end}"] for end in ("", "lo", "hi")}
        parts.append(runs[FACTS].assign(panel=name, **ends))
    ratio = parts[1]["x"]
    mark = {} if floor is None else {"lines": {"noise floor": floor["js"]}, "band": (floor["js_lo"], floor["js_hi"])}
    edge = {"suffix": "×", "limits": (0.97, min(1.3 * ratio.max(), HIGHEST))}
    x = {"js": Axis("JS divergence from the dense model\n(nats per token)", 10, **mark)}
    x["perplexity"] = Axis(PERPLEXITY.compared + ",\ngeometric mean over texts", 10, **edge)
    look = {"columns": 2, "size": (6.6, 4.0), "share": (False, True), "title": ""}
    words, cut = _rank_words(associate(page.results)), int((ratio > HIGHEST).sum())
    caption = (
        f"Change of mean accuracy over {len(accuracy_tasks(page.results))} tasks, against JS divergence and against "
        f"relative perplexity on {listing(texts_of(page.results))}; {len(runs)} runs, a marker a method. {words} Bars: "
        "95 % bootstrap intervals over items and windows."
        + " Noise floor: JS of the dense model in float32, with its interval." * bool(mark)
        + f" Beyond {HIGHEST:,.0f}× and not drawn on the right: {cut}." * bool(cut)
    )
    drawing = scatter(pd.concat(parts, ignore_index=True), x, Axis(ACCURACY.compared, lines={"": 0.0}), **look)
    return drawing, caption, f"Accuracy change of {len(runs)} runs, scattered over JS and over perplexity. {words}"


@CHAPTER.figure(DOTS)
def _dots(page: Page):
    groups, prompted = {kind: associate(page.results, kind) for kind in KINDS}, _prompted(page)
    some = prompted is not page.results and len(prompted.run_ids) > 0
    groups |= {"all tasks": associate(prompted)} if some else {}
    words, rows, axes = _rank_words(groups[ALL]), [], {}
    for group, found in groups.items():
        for (kind, name, outcome), rho in found.estimates.items():
            facts = {"panel": group, "name": PREDICTORS[name].label, "outcome": OUTCOMES[outcome]}
            rows += [facts | vars(rho)] if kind == "rho" else []
        if found.estimates:
            edge = {"limits": (None, 1.03), "lines": {"": found.estimates["rho", "perplexity", LOSS].value}}
            axes[group] = Axis(f"{found.n} runs,\n{found.settings} settings", ticks=(-0.5, 0, 0.5, 1), **edge)
    if not rows:
        return words
    missing, frame = [group for group in groups if group not in axes], pd.DataFrame(rows).drop(columns="p")
    caption = (
        f"How well each number ranks the runs by task loss and by answer flips (Spearman). {words} Vertical line: "
        "perplexity with task loss. Bars: 95 % bootstrap intervals over windows, items and settings; the table has "
        "paired differences."
        + " Only runs that were asked all tasks (right) read all prompts." * some
        + f" Fewer than {FEW} settings: {listing(missing)}." * bool(missing)
    )
    look = {"series": "outcome", "looks": LOOKS, "key": True, "hollow": frame["outcome"] == OUTCOMES[FLIPS]}
    alt = f"Rank correlations of {len(PREDICTORS)} numbers with task loss and answer flips, with intervals. {words}"
    return forest(frame, axes, size=(6.8, 0.38), **look), caption, alt


@CHAPTER.figure(TOKENS)
def _token_divergence(page: Page):
    runs, (floor, why), parts, looks, told = matched(page.results), noise_floor(page.results), [], {}, []
    if runs.empty:
        return "No run holds the divergence of single tokens, so there is nothing to show."
    for method, part in by_method(runs):
        run, style = part.iloc[0].to_dict(), style_of(method)
        looks[run["setting"]] = MethodStyle(run["setting"], style.colour, style.marker)
        ends = [{e or "value": run[f"p{percent}{e and '_'}{e}"] for e in ("", "lo", "hi")} for percent in PERCENTILES]
        own = pd.DataFrame(ends).assign(x=[1 - percent / 100 for percent in PERCENTILES], part="percentile")
        whole = tokens.curve(page.results, run).assign(part="curve")
        parts += [one.assign(**{fact: run[fact] for fact in (*FACTS, "setting")}) for one in (whole, own)]
        ends = cell(run, "js", nats), cell(run, "p99", nats)
        told.append("{} {} on average, {} from the worst 1 % on".format(run["setting"], *ends))
    words, rounding = f"Of {_place(runs)}, in nats a token: {'; '.join(told)}.", f"No noise floor: {why}."
    if floor is not None:
        looks["noise floor"] = MethodStyle("noise floor", "#555555", "*")
        parts.append(
            tokens.curve(page.results, floor).assign(run_id=floor["run_id"], setting="noise floor", part="curve")
        )
        rounding = cell(floor, "js", nats)
        rounding = f"Noise floor: the dense model in float32 against itself in bfloat16, {rounding} on average."
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[(frame["x"] <= 0.96) & (frame["value"] > 0)].drop(columns="method").sort_values("x", ascending=False)
    caption = (
        f"How divergence is spread over tokens, mean of the quantiles on {listing(texts_of(page.results))}. {words} "
        f"Bars: 95 % bootstrap intervals over windows, at the worst half, tenth and hundredth of tokens. {rounding}"
    )
    x = Axis("share of tokens that diverge at least so much", 10, ticks=(0.5, 0.1, 0.01, 0.001), reverse=True)
    most = {"most there can be (ln 2)": float(np.log(2))}
    y = Axis("JS divergence of a token (nats)", 10, limits=(None, 1.5), lines=most)
    line = frame["setting"].where(frame["part"] == "curve", "")
    drawing = lines(frame, x, y, size=(6.4, 3.8), series="setting", looks=looks, line=line)
    return drawing, caption, f"Curves of per-token divergence, rising towards the worst tokens. {words}"


@CHAPTER.table("correlations")
def _correlation_table(page: Page) -> Table:
    body = []
    for found in (associate(page.results, kind) for kind in KINDS):
        for name in (name for name in PREDICTORS if ("rho", name, LOSS) in found.estimates):
            cells = [found.text(kind, name, outcome) or "0" for outcome in OUTCOMES for kind in ("rho", "gain")]
            body.append([found.scope, PREDICTORS[name].label, *cells, f"{found.n}", f"{found.settings}"])
    outcomes = [head for noun in OUTCOMES.values() for head in (noun, f"{noun}, minus perplexity's")]
    note = (
        "Spearman rank correlations over runs, and differences from that of perplexity over the same runs; in brackets "
        f"95 % intervals of one paired bootstrap over windows, items and settings ({correlation.DRAWS:,} draws). "
        f"Positive: the more of this, the more is lost. A scope with fewer than {FEW} settings is left out."
    )
    return Table(["runs", "number", *outcomes, "n", "settings"], body, note, 2)


@CHAPTER.table("where")
def _where_table(page: Page) -> Table:
    frame, body = correlation.where(page.results), []
    for scope, part in frame.groupby("scope", sort=False) if len(frame) else ():
        gains = part.to_dict("records")
        cells = [text for line in gains for text in (cell(line, write=_gain), correlation.better(line))]
        body.append([scope, f"{gains[0]['n']}", f"{gains[0]['settings']}", *cells])
    columns = [head for noun in OUTCOMES.values() for head in (f"JS minus perplexity, {noun}", "better")]
    note = (
        "Difference of rank correlations with 95 % intervals, as in the table above. Better: after Holm's correction "
        f"over all lines and both outcomes, p < {LEVEL}. Halves by the mean of a run's ranks in perplexity and JS. A "
        f"line with one setting holds runs that differ in calibration only, at least {correlation.MIN_RUNS}; others "
        f"have at least {FEW} settings."
    )
    return Table(["runs", "n", "settings", *columns], body, note)


@CHAPTER.table("runs")
def _run_table(page: Page) -> Table:
    runs = tokens.with_tails(page.results).sort_values("js", kind="stable")
    columns = {
        "": lambda line: tokens.run_label(line, runs),
        "JS": lambda line: cell(line, "js", nats),
        "JS, 99th percentile": lambda line: cell(line, "p99", nats),
        "KL(dense ‖ compressed)": lambda line: cell(line, "kl", nats),
        "top-1 agreement (%)": lambda line: cell(line, "agreement", _share),
        "perplexity": lambda line: cell(line, "perplexity", lambda rise: times(np.exp(rise))),
        "accuracy change (points)": lambda line: cell(line, "change", points),
        "answer flips (%)": lambda line: cell(line, FLIPS, _share),
    }
    note = (
        "Means over the texts that all runs share, divergences in nats per token; in brackets 95 % bootstrap intervals "
        "over windows or items. Answer flips: share of items that are right in one of the two models only."
    )
    return Table.of(runs, columns, note)
