"""Numbers as people read them, and the short phrases that captions and takeaways share."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from crosscal_book.axes import by_method
from crosscal_book.style import style_of

# "Perplexity looks kept": at most this many times the dense model's. A convention of this study, set before its runs
# were seen and stated where it is used.
KEPT = 1.10


def times(ratio: float) -> str:
    """A ratio to the dense model's value.

    >>> times(1.234), times(18.4), times(1234.0), times(0.00213)
    ('1.23×', '18.4×', '1,234×', '0.0021×')
    """
    if 0 < ratio < 0.1:
        return f"{ratio:.{1 - math.floor(math.log10(ratio))}f}×"
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:,.0f}×"


def number(value: float) -> str:
    """A perplexity or another positive number, to three or four digits.

    >>> number(14.93), number(278.4), number(12345.6)
    ('14.9', '278', '12,346')
    """
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def points(change: float) -> str:
    """A change of accuracy in points of a hundred, with a sign.

    >>> points(-0.0312), points(0.0)
    ('−3.1', '+0.0')
    """
    return f"{100 * change:+.1f}".replace("-", "−")


def point_change(change: float) -> str:
    """A change of accuracy for a sentence.

    >>> point_change(-0.0312)
    '−3.1 points'
    """
    return f"{points(change)} points"


def run_name(run) -> str:
    """A run's method and pattern, from any line that has both: `SparseGPT 50%`."""
    return f"{style_of(run['method']).label} {run['pattern']}"


def p_text(p: float) -> str:
    """A p-value for a sentence.

    >>> p_text(0.0421), p_text(0.0)
    ('p = 0.042', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def listing(names: Sequence[str]) -> str:
    """
    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def method_values(frame: pd.DataFrame, column: str, text: Callable[[float], str]) -> str:
    """`SparseGPT 1.60×, Wanda 1.94×`: one value per method, in the book's order."""
    return ", ".join(f"{style_of(m).label} {text(lines[column].iloc[0])}" for m, lines in by_method(frame))
