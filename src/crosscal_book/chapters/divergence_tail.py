"""How divergence is spread over tokens: models of equal perplexity, token by token, beside the noise floor."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from crosscal.results.frame import Results
from crosscal_book.axes import by_method, panels, sentence_figure
from crosscal_book.chapters.divergence_runs import VARIABLES, nats, noise_floor, sample, shared, texts_of
from crosscal_book.style import CHANCE_COLOUR, Figure, finish, spread, style_of
from crosscal_book.words import KEPT, listing

NAME = "fig-token-divergence"
MATCH = 1.05  # perplexities within 5 % of a common one count as equal
CURVES = 6  # more cannot be told apart
PERCENTILES = (50, 90, 99)
SHARES = (0.5, 0.1, 0.01, 0.001)
UNIT = "JS divergence of a token (nats)"


def matched_runs(results: Results) -> pd.DataFrame:
    """One run a method, all of nearly equal perplexity: the perplexity that most methods come near.

    Only runs whose perplexity rose visibly (beyond `KEPT`) count, if there are any: undamaged models are all alike.
    Columns: those of `sample`, `ratio` of perplexity, mean `js`, and `p50`, `p90`, `p99` of JS over tokens, the last
    three as means over texts, with `_lo` and `_hi`.
    """
    found = sample(results)
    js = found.interval("js")
    runs = found.runs.assign(ratio=np.exp(found.of("perplexity")), js=found.of("js"), js_lo=js[0], js_hi=js[1])
    runs = runs[found.compressed & np.isfinite(runs["js"]) & runs["run_id"].isin(_with_tokens(results))]
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
        ends = [percentile(results, run_id, percent) for run_id in matched["run_id"]]
        matched = matched.assign(**{f"p{percent}{e}": [x[n] for x in ends] for n, e in enumerate(("", "_lo", "_hi"))})
    return matched


def percentile(results: Results, run_id: str, percent: int) -> tuple[float, float, float]:
    """A percentile of JS over tokens, as the mean over texts, with its 95 % interval; texts are independent."""
    rows = shared(results).only(run_id=run_id, metric=f"js_divergence_p{percent}")
    rows = rows[rows["eval_set"].isin(texts_of(results))]
    if rows.empty:
        return (np.nan,) * 3
    value = rows["value"].mean()
    below, above = (np.sqrt(((rows["value"] - rows[end]) ** 2).sum()) / len(rows) for end in ("lo", "hi"))
    return value, value - below, value + above


def token_divergence(results: Results) -> Figure:
    """JS over tokens, from the median to the worst, for models of equal perplexity, with the noise floor below."""
    runs, (floor, why) = matched_runs(results), noise_floor(results)
    if runs.empty:
        return sentence_figure(NAME, "No run holds the divergence of single tokens, so there is nothing to show.")
    canvas, (axes,) = panels(1, 1, 6.4, 3.8)
    axes.set(xscale="log", yscale="log", xlabel="share of tokens that diverge at least so much", ylabel=UNIT)
    ends, middles = {}, []
    for method, lines in by_method(runs):
        run, style = lines.iloc[0], style_of(method)
        shares, values = token_curve(results, run["run_id"])
        axes.plot(shares, values, color=style.colour)
        _draw_intervals(axes, run, method)
        ends[run["setting"]] = (values[-1], style.colour)
        middles.append(np.interp(-0.5, -shares, values))
    if floor is not None:
        shares, values = token_curve(results, sample(results).runs["run_id"].iloc[floor])
        axes.plot(shares, np.maximum(values, 1e-8), color=CHANCE_COLOUR, linestyle="--")
        ends["noise floor"] = (max(values[-1], 1e-8), "#555555")
        middles.append(max(np.interp(-0.5, -shares, values), 1e-7))
    axes.axhline(np.log(2), color="#333333", linewidth=1)
    axes.set_xlim(1.0, min(SHARES) * 0.9)
    axes.set_ylim(0.3 * min(middles), 1.5)
    axes.text(0.95, np.log(2) * 1.08, "most there can be (ln 2)", fontsize=8, va="bottom")
    axes.set_xticks(SHARES, [f"{100 * share:g} %" for share in SHARES])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label_ends(axes, ends)
    found = tail_values(runs)
    caption = (
        f"How divergence is spread over tokens, mean of the quantiles on {listing(texts_of(results))}. {found} Bars: "
        "95 % bootstrap intervals over windows, at the worst half, tenth and hundredth of tokens. "
        + (f"No noise floor: {why}." if floor is None else _floor_words(results, floor))
    )
    return finish(canvas, NAME, caption, f"Curves of per-token divergence, rising towards the worst tokens. {found}")


def token_curve(results: Results, run_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares of tokens, falling, and the divergence that such a share reaches: quantiles, as means over texts."""
    items = results.items[run_id]
    entries = [items[f"{text} tokens"] for text in texts_of(results) if f"{text} tokens" in items]
    shares = 1 - np.array(entries[0]["quantile"], dtype=float)
    values = np.mean([entry["js_divergence"] for entry in entries], axis=0)
    shown = (shares < 1) & (shares > 0)
    return shares[shown], values[shown]


def tail_values(runs: pd.DataFrame) -> str:
    """What models of equal perplexity differ in, in a sentence."""
    parts = [
        f"{run['setting']} {_with_interval(run, 'js')} on average, {_with_interval(run, 'p99')} from the worst 1 % on"
        for _, lines in by_method(runs)
        for run in lines.to_dict("records")
    ]
    return f"Of {_place(runs)}, in nats a token: {'; '.join(parts)}."


def tail_sentence(results: Results) -> str:
    """What the mean hides, for the takeaway."""
    runs = matched_runs(results)
    if runs.empty or runs["p99"].isna().all():
        return ""
    fold, middle = runs["p99"] / runs["js"], runs["p50"] / runs["js"]
    least, most = (runs.loc[where] for where in (runs["js"].idxmin(), runs["js"].idxmax()))
    text = (
        f"The mean hides a tail ([evidence](#{NAME})): in {_place(runs)} the worst hundredth of tokens begins at "
        f"{_range(fold, '.1f')} times a model's mean JS, the median token is at {_range(middle, '.2f')} times it."
    )
    if len(runs) > 1:
        text += (
            f" Equal perplexity is not equal divergence: the mean runs from {_with_interval(least, 'js')} "
            f"({least['setting']}) to {_with_interval(most, 'js')} nats a token ({most['setting']})."
        )
    return text


def _place(runs: pd.DataFrame) -> str:
    where = _range(runs["ratio"].map(lambda ratio: round(ratio, 2)), ".2f")
    return f"{len(runs)} model{'s' if len(runs) > 1 else ''} at {where} times the dense perplexity"


def _range(values: pd.Series, form: str) -> str:
    ends = [format(values.min(), form), format(values.max(), form)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _with_interval(run, name: str) -> str:
    return f"{nats(run[name])} [{nats(run[f'{name}_lo'])}, {nats(run[f'{name}_hi'])}]"


def _with_tokens(results: Results) -> list[str]:
    """The runs that hold quantiles over tokens for some text."""
    keys = [f"{text} tokens" for text in texts_of(results)]
    return [run_id for run_id, items in results.items.items() if any(key in items for key in keys)]


def _draw_intervals(axes: Axes, run: pd.Series, method: str) -> None:
    """Markers with the stored intervals at three percentiles."""
    style = style_of(method)
    for percent in PERCENTILES:
        value, lo, hi = (run[f"p{percent}{end}"] for end in ("", "_lo", "_hi"))
        if np.isfinite(value):
            bars = [[value - lo], [hi - value]]
            axes.errorbar([1 - percent / 100], [value], yerr=bars, color=style.colour, marker=style.marker, capsize=2)


def _label_ends(axes: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Each curve's name at the right, near the height where it ends."""
    axes.figure.draw_without_rendering()
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((min(SHARES), value))[1] for value, _ in ends.values()]
    places = spread(heights, 0.065)
    lowered = max(0.0, max(places) - 0.98)
    for (name, (_, colour)), height in zip(ends.items(), [place - lowered for place in places], strict=True):
        axes.text(1.02, height, name, color=colour, transform=axes.transAxes, va="center", fontweight="bold")


def _floor_words(results: Results, floor: int) -> str:
    found = sample(results)
    lo, hi = (end[floor] for end in found.interval("js"))
    value = nats(found.values[VARIABLES.index("js"), floor, 0])
    return (
        f"Dashed: the dense model in float32 against itself in bfloat16, {value} [{nats(lo)}, {nats(hi)}] on average."
    )
