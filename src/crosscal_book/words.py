"""Numbers as people read them, and the short phrases that captions and takeaways share."""

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from crosscal.results.quantities import points, times
from crosscal.stats import Estimate
from crosscal_book.style import by_method, style_of

__all__ = ["cell", "interval", "listing", "method_values", "number", "p_text", "percent", "points", "run_name", "times"]

# "Perplexity looks kept": at most this many times the dense model's. A convention of this study, set before its runs
# were seen and stated where it is used.
KEPT = 1.10


def number(value: float) -> str:
    """Return a perplexity or another positive number, to three or four digits.

    >>> number(14.93), number(278.4), number(12345.6)
    ('14.9', '278', '12,346')
    """
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def percent(change: float) -> str:
    """Return a relative change in per cent, with a sign.

    >>> percent(0.025), percent(-0.1)
    ('+2.5 %', '−10.0 %')
    """
    return f"{points(change)} %"


def interval(value: float, lo: float, hi: float, write: Callable[[float], str] = times, unit: str = "") -> str:
    """Return a value with its unit and interval.

    >>> interval(1.0, 0.9, 1.1), interval(-0.03, -0.04, 0.01, points, " points")
    ('1.00× [0.90×, 1.10×]', '−3.0 points [−4.0, +1.0]')
    """
    return Estimate(value, lo, hi, 0).text(write).replace(" [", f"{unit} [", 1)


def cell(line: Mapping | pd.Series, name: str = "value", write: Callable[[float], str] = times, unit: str = "") -> str:
    """Return a value of a line with its interval, from the columns `name`, `name_lo` and `name_hi`; "" without one.

    The interval of `value` is in `lo` and `hi`.

    >>> cell({"value": 2.0, "lo": 1.0, "hi": 3.0}), cell({"js": math.nan, "js_lo": math.nan, "js_hi": math.nan}, "js")
    ('2.00× [1.00×, 3.00×]', '')
    """
    lo, hi = ("lo", "hi") if name == "value" else (f"{name}_lo", f"{name}_hi")
    return "" if math.isnan(line[name]) else interval(line[name], line[lo], line[hi], write, unit)


_ADDED = {"refine=lsq": "+ least squares", "refine=swaps": "+ swaps", "rotate=True": "rotated", "anchor": "anchored"}
_ADDED |= {"act_order=True": "act-order"}


def run_name(run: Mapping | pd.Series) -> str:
    """Return a run's method, target and what was added, from a line with `method`, `target` and perhaps `options`.

    >>> run_name({"method": "sparsegpt", "target": "50%", "options": "refine=lsq anchor=0.25"})
    'SparseGPT 50% + least squares anchored'
    """
    added = [_ADDED.get(o) or _ADDED.get(o.partition("=")[0], "") for o in run.get("options", "").split()]
    target = run["target" if "target" in run else "pattern"]
    return " ".join(filter(None, [style_of(run["method"]).label, target, *added]))


def p_text(p: float) -> str:
    """Return a p-value for a sentence.

    >>> p_text(0.0421), p_text(0.0)
    ('p = 0.042', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def listing(names: Sequence[str]) -> str:
    """Return names joined for a sentence.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def method_values(frame: pd.DataFrame, column: str, text: Callable[[float], str]) -> str:
    """Return one value per method, in the book's order: `SparseGPT 1.60×, Wanda 1.94×`."""
    return ", ".join(f"{style_of(m).label} {text(lines[column].iloc[0])}" for m, lines in by_method(frame))
