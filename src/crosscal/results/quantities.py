"""Every quantity that rows hold, registered once: label, unit, direction, scale, and how it follows from items.

To add one, compute its items (per token in `crosscal.metrics.text_scores`, per task item in `crosscal.metrics.tasks`,
per answer in `crosscal.metrics.writing`) and register it here; rows, tables, comparisons and pages follow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from crosscal.stats import RESAMPLES, Estimate, area_under_curve, bootstrap_interval


def times(ratio: float) -> str:
    """Return a ratio, such as that to the dense model's value, to three digits.

    >>> times(1.234), times(18.4), times(1234.0), times(0.00213)
    ('1.23×', '18.4×', '1,234×', '0.0021×')
    """
    if 0 < ratio < 0.1:
        return f"{ratio:.{1 - math.floor(math.log10(ratio))}f}×"
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:,.0f}×"


def points(change: float) -> str:
    """Return a change of a fraction in points of a hundred, with a sign.

    >>> points(-0.0312), points(0.0)
    ('−3.1', '+0.0')
    """
    return f"{100 * change:+.1f}".replace("-", "−")


_Statistic = Callable[[np.ndarray], np.ndarray]
_TOKEN_RESAMPLES = 100  # a percentile over all tokens of every resample is slow


def _mean(drawn: np.ndarray) -> np.ndarray:
    return drawn.mean(axis=1)


def _exp_mean(drawn: np.ndarray) -> np.ndarray:
    """Perplexity from per-window mean losses."""
    return np.exp(_mean(drawn))


@dataclass(frozen=True)
class Quantity:
    """Describe one measured quantity.

    `name` stands in rows, `label` in tables and figures, `unit` in rows. `scale` says how values and changes are
    written: "ratio" (changes are quotients, 1.23 times), "nats" (differences in nats) or "points" (values are
    fractions, written in percent; changes in points of a hundred). `over` names the kind of evaluation set that has
    it: "windows" of a text, all "tokens" of a text's windows, items of a "task", "answers" to instructions, or
    "layers". `items` names the lists of per-item outcomes it follows from, `statistic` maps resamples of them
    [resamples, n(, lists)] to values [resamples].
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool
    scale: Literal["ratio", "nats", "points"]
    over: Literal["windows", "tokens", "task", "answers", "layers"]
    items: tuple[str, ...]
    statistic: _Statistic = _mean
    resamples: int = RESAMPLES

    @property
    def heading(self) -> str:
        """Return the label with what values are written in.

        >>> QUANTITIES["js_divergence"].heading, QUANTITIES["top1_agreement"].heading
        ('JS divergence (nats)', 'same first token (%)')
        """
        return self.label + {"ratio": "", "nats": " (nats)", "points": " (%)"}[self.scale]

    @property
    def neutral(self) -> float:
        """Return the comparison of two equal values: 1 for a ratio, 0 for a difference."""
        return 1.0 if self.scale == "ratio" else 0.0

    @property
    def from_dense(self) -> bool:
        """Return whether the quantity is itself a distance from the dense model."""
        return self.over in ("windows", "tokens") and self.scale != "ratio"

    @property
    def compared(self) -> str:
        """Return the name of a comparison with the dense model, for an axis."""
        unit = {"nats": " (nats per token)", "points": " (points)"}.get(self.scale, "")
        if self.from_dense:
            return self.label + unit
        return f"{self.label} / dense {self.label}" if self.scale == "ratio" else f"change of mean {self.label}{unit}"

    def change(self, difference: float) -> float:
        """Return a mean difference of per-item outcomes as comparisons are stated: exp of it for a ratio."""
        return float(np.exp(difference)) if self.scale == "ratio" else difference

    def write(self, change: float) -> str:
        """Return a comparison as text: `1.23×`, `0.0102` nats or `−3.1` points."""
        return {"ratio": times, "nats": "{:.4f}".format, "points": points}[self.scale](change)

    def value(self, items: Mapping[str, ArrayLike]) -> float:
        """Return the value alone.

        >>> QUANTITIES["accuracy"].value({"correct": [1, 0, 1, 1]})
        0.75
        """
        return float(self.statistic(self._values(items)[None])[0])

    def estimate(self, items: Mapping[str, ArrayLike]) -> Estimate:
        """Return the value with its percentile bootstrap 95 % interval over windows, items or layers.

        `items` holds the lists that `self.items` names: [n], or [n, tokens] where `over` is "tokens". Raises `KeyError`
        when one is missing.

        >>> QUANTITIES["perplexity"].estimate({"nll": [0.0, 0.0]})
        Estimate(value=1.0, lo=1.0, hi=1.0, n=2, p=nan)
        """
        values = self._values(items)
        lo, hi = bootstrap_interval(values, self.statistic, resamples=self.resamples)
        return Estimate(self.value(items), lo, hi, len(values))

    def _values(self, items: Mapping[str, ArrayLike]) -> np.ndarray:
        """The lists that the value follows from, as one array: [n], [n, tokens], or [n, lists]."""
        lists = [np.asarray(items[name], dtype=np.float64) for name in self.items]
        return lists[0] if len(lists) == 1 else np.stack(lists, axis=-1)


def _divergence(name: str, label: str) -> Quantity:
    return Quantity(name, label, "nats per token", False, "nats", "windows", (name,))


def _percentile(percent: int) -> Quantity:
    """The percentile over all tokens of the windows drawn."""

    def statistic(drawn: np.ndarray) -> np.ndarray:
        return np.percentile(drawn.reshape(len(drawn), -1), percent, axis=1)

    name, label = f"js_divergence_p{percent}", f"JS divergence, {percent}th percentile"
    how = ("nats per token", False, "nats", "tokens", ("js_divergence",), statistic, _TOKEN_RESAMPLES)
    return Quantity(name, label, *how)


def _accuracy(name: str, label: str) -> Quantity:
    return Quantity(name, label, "fraction of items", True, "points", "task", ("correct",))


def _answer_score(name: str, label: str) -> Quantity:
    return Quantity(name, label, "fraction", True, "points", "answers", (name,))


_TOP1 = ("same first token", "fraction of tokens", True, "points", "windows", ("top1_agreement",))
_LAYER_UNIT = "fraction of squared output, mean over layers"
_AUC = ("AUC", "area under the ROC curve", True, "points", "task", ("score", "gold"), area_under_curve)
_REGISTERED = (
    Quantity("perplexity", "perplexity", "per token", False, "ratio", "windows", ("nll",), _exp_mean),
    _divergence("js_divergence", "JS divergence"),
    _divergence("kl_divergence", "KL(dense ‖ compressed)"),
    _divergence("kl_divergence_reverse", "KL(compressed ‖ dense)"),
    Quantity(
        "top1_agreement", "same first token", "fraction of tokens", True, "points", "windows", ("top1_agreement",)
    ),
    *map(_percentile, (50, 90, 99)),
    _accuracy("accuracy", "accuracy"),
    _accuracy("accuracy_per_char", "accuracy per character"),
    _accuracy("accuracy_per_byte", "accuracy per byte"),
    Quantity("auc", *_AUC),
    _answer_score("exact_match", "exact match"),
    _answer_score("f1", "F1"),
    _answer_score("rouge1", "ROUGE-1"),
    Quantity("layer_error", "layer error", _LAYER_UNIT, False, "points", "layers", ("relative_error",)),
)

QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in _REGISTERED}
"""Every registered quantity by the name it has in rows, in the order of rows."""
PERPLEXITY, DIVERGENCE, ACCURACY = (QUANTITIES[name] for name in ("perplexity", "js_divergence", "accuracy"))


def quantities_over(*kinds: str) -> list[Quantity]:
    """Return the quantities of some kinds of evaluation sets, in the order of rows.

    >>> [quantity.name for quantity in quantities_over("answers")]
    ['exact_match', 'f1', 'rouge1']
    """
    return [quantity for quantity in QUANTITIES.values() if quantity.over in kinds]


def task_quantity(metric: str) -> Quantity:
    """Return the quantity of a task's score; a metric that only the harness knows is a mean over items.

    >>> task_quantity("accuracy").unit, task_quantity("exact_match").items
    ('fraction of items', ('correct',))
    """
    registered = {quantity.name: quantity for quantity in quantities_over("task")}
    return registered.get(metric) or _accuracy(metric, metric.replace("_", " "))
