"""A claim is data: a sentence, what it compares, a rule, where its evidence is. All that is said is made from these.

A claim's *rows* are its comparisons, one line each: `run_id`, `other`, `name`, `value` with `lo` and `hi`, and either
`p` (two-sided, of no difference) or `p_yes` and `p_no` (one-sided, of the claim's being false and true). Holm's
correction runs over the rows of all claims of a `family`. Each row *shows* the claim, *refutes* it, or neither, by its
direction:

| direction | a row shows it | a row refutes it |
|---|---|---|
| better by m | significantly better | significantly worse; or no significant difference and no room for m |
| worse by m | significantly worse | significantly better; or no significant difference and no room for m |
| no worse by m | its interval excludes being worse by m | worse by more than m, and significant |
| equal by m | its interval lies within m on both sides | apart by more than m, and significant |

A row without p-values is significant when its interval says so; `limit`, where there is one, stands for no difference.
With one-sided p-values a row shows the claim when `p_yes` is below 5 %, and refutes it when `p_no` is. The *quantifier*
decides over rows: `every` holds when all show it and fails when one refutes it; `most(share)` holds when this share of
the rows shows it and none refutes it; `some` holds when one shows it and fails when all refute it; `mean` is about one
row, a mean. In all other cases, and without rows, it cannot be told.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from crosscal.results.compare import paired
from crosscal.results.frame import DENSE
from crosscal.results.quantities import PERPLEXITY, Quantity
from crosscal.stats import LEVEL, Estimate
from crosscal_book.style import style_of
from crosscal_book.words import listing, p_text

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
DIRECTIONS = ("better", "worse", "no worse", "equal")
MANY = 4  # of more rows only the clearest on either side are written out
FACTS = ("run_id", "method", "target", "calibration", "weight")


@dataclass(frozen=True)
class Rule:
    """A quantifier over rows, with the `share` that is `most` of them, and a direction with a margin."""

    quantifier: str
    direction: str
    by: float = 0.0
    share: float = 0.5

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"the direction is '{self.direction}'; give one of {', '.join(DIRECTIONS)}")

    def judge(self, rows: pd.DataFrame, on: Quantity) -> pd.DataFrame:
        """Return corrected rows with `gain` (positive is better), its `reach`, and what each `shows` or `refutes`."""
        sign, limit = 1.0 if on.higher_is_better else -1.0, rows.get("limit", on.neutral)
        gain, *ends = (sign * (rows[part] - limit) for part in ("value", "lo", "hi"))
        if self.direction == "worse":
            gain, ends = -gain, [-end for end in ends]
        low, high = np.minimum(*ends), np.maximum(*ends)
        if "p_yes" in rows:
            shows, refutes = rows["p_yes_holm"] < LEVEL, rows["p_no_holm"] < LEVEL
        else:
            sure = rows["p_holm"] < LEVEL if "p_holm" in rows else (low > 0) | (high < 0)
            shows, refutes = {
                "no worse": (low > -self.by, sure & (gain < -self.by)),
                "equal": ((low > -self.by) & (high < self.by), sure & (gain.abs() > self.by)),
            }.get(self.direction, (sure & (gain > 0), (sure & (gain < 0)) | (~sure & (high < self.by))))
        support = -gain.abs() if self.direction == "equal" else gain
        support = rows.get("support", support)
        return rows.assign(gain=gain, support=support, reach=high, shows=shows, refutes=refutes)

    def answer(self, judged: pd.DataFrame) -> str:
        """Return what the quantifier says of judged rows.

        >>> rows = pd.DataFrame({"shows": [True, False], "refutes": [False, False]})
        >>> [Rule(quantifier, "better").answer(rows) for quantifier in ("every", "most", "some")]
        ['cannot be told', 'holds', 'holds']
        """
        if judged.empty:
            return OPEN
        shows, refutes = judged["shows"].astype(bool), judged["refutes"].astype(bool)
        if self.quantifier == "some":
            return HOLDS if shows.any() else FAILS if refutes.all() else OPEN
        holds = shows.mean() >= (self.share if self.quantifier == "most" else 1.0)
        if self.direction in ("no worse", "equal") and holds:
            return HOLDS
        return FAILS if refutes.any() else HOLDS if holds else OPEN


# Rules by quantifier: every(direction, by=margin), most(direction, by=margin, share=0.5), ...
every, most, some, mean = (partial(Rule, quantifier) for quantifier in ("every", "most", "some", "mean"))


@dataclass(frozen=True)
class Verdict:
    """A claim's answer here: `holds`, `does not hold` or `cannot be told`, and the sentence that says why.

    `effect` has its interval in it; `evidence` is the name of the figure or table that shows it; `brief` is the effect
    alone, without how it was tested, for the front page; `paper` is the key of the paper that makes the claim.
    """

    claim: str
    answer: str
    effect: str
    evidence: str = ""
    brief: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim as data; `Chapter.claim` describes the fields."""

    name: str
    sentence: str
    rows: Callable
    rule: Rule
    on: Quantity = PERPLEXITY
    write: Callable[[float], str] | None = None
    lead: str = ""
    family: str = ""
    evidence: str = ""
    paper: str = ""
    says: str | Callable[..., str] = ""
    brief: str | Callable[..., str] = ""
    missing: str | Callable[..., str] = ""
    each: str = ""
    otherwise: str = ""
    when: Callable = lambda _: True

    def verdicts(self, rows: pd.DataFrame, page) -> list[Verdict]:
        """Return the verdict from the claim's corrected rows; one for each value of the column `each`, where given."""
        if rows.empty:
            missing = self.missing or getattr(self.rows, "missing", "")
            effect = str(missing(page) if callable(missing) else missing)
            return [Verdict(self.otherwise or self.sentence, OPEN, effect, self.evidence, "", self.paper)]
        verdicts = []
        for part in [part for _, part in rows.groupby(self.each, sort=False)] if self.each else [rows]:
            judged = self.rule.judge(part, self.on)
            sentence = self.sentence.format_map(judged.to_dict("records")[0]) if self.each else self.sentence
            effect = self._said(self.says or "{default}", judged, page)
            brief = self._said(self.brief, judged, page) if self.brief else ""
            answer = self.rule.answer(judged)
            verdicts.append(Verdict(sentence, answer, effect, self.evidence, brief, self.paper))
        return verdicts

    def _said(self, template: str | Callable[..., str], judged: pd.DataFrame, page) -> str:
        """An effect in the claim's own words: a function of page and rows, or a text with fields.

        Fields are the columns of the row that supports the claim least (of `some`: that shows it most, or may), its
        `estimate` or `change` with its unit, its `p` and how it `tested`; `count`, `shown` and `refuted` rows, names
        of those `showing` and `refuting`; the `default` effect: comparisons with interval and p, of many the clearest
        and the least clear; a `plain` list without tests.
        """
        if callable(template):
            return template(page, judged)
        lines = judged.to_dict("records")
        ranked = judged.sort_values("support", kind="stable").to_dict("records")
        plain = [f"{line['name']} {self._estimate(line)}" for line in lines]
        shown, refuted = ([line["name"] for line in lines if line[how]] for how in ("shows", "refutes"))
        text = listing([f"{said} ({_p(line)})" for said, line in zip(plain, lines, strict=True)])
        if len(lines) > MANY:
            clearest, least = (f"{line['name']} {self._estimate(line)}" for line in (ranked[-1], ranked[0]))
            counts = f"{len(shown)} of {len(lines)} comparisons establish it, {len(refuted)} contradict it"
            text = f"clearest {clearest}; least clear {least} ({counts}, Holm-corrected p < {LEVEL})"
        own = f"{self.on.label} ratios" if self.on.scale == "ratio" else f"changes of {self.on.label}"
        one, proofs = ranked[0], [line for line in lines if line["shows"]]
        if self.rule.quantifier == "some":
            one = max(proofs or lines, key=lambda line: line["support" if proofs else "reach"])
        estimate = self._estimate(one)
        fields = {
            "default": f"{self.lead or own}: {text}",
            "plain": listing(plain),
            "count": len(lines),
            "shown": len(shown),
            "refuted": len(refuted),
            "showing": "; ".join(shown) or "none",
            "refuting": "; ".join(refuted) or "none",
            "estimate": estimate,
            "change": estimate.replace(" [", " points [") if self.on.scale == "points" else estimate,
            "p": _p(one),
            "tested": _tested(one),
        }
        return template.format_map({**one, **fields})

    def _estimate(self, line: Mapping) -> str:
        return Estimate(line["value"], line["lo"], line["hi"], 0).text(self.write or self.on.write)


def _p(line: Mapping) -> str:
    if "p_holm" in line:
        return p_text(line["p_holm"])
    return p_text(min(line["p_yes_holm"], line["p_no_holm"])) if "p_yes_holm" in line else ""


def _tested(line: Mapping) -> str:
    """How one-sided tests decided on a row."""
    if "p_yes_holm" not in line:
        return _p(line)
    yes, no = p_text(line["p_yes_holm"]), p_text(line["p_no_holm"])
    if line["shows"] or line["refutes"]:
        return f"one-sided {yes}" if line["shows"] else f"the claimed gain is excluded, one-sided {no}"
    return f"no gain is shown, one-sided {yes}, nor is the claimed one excluded, {no}"


def run(**equal: object) -> Mapping[str, object]:
    """Return a selection of runs: columns of `Results.runs` and what they must be, or one of a tuple."""
    return equal


def select(runs: pd.DataFrame, equal: Mapping[str, object]) -> pd.DataFrame:
    """Return the runs that a selection names.

    >>> select(pd.DataFrame({"method": ["rtn", "gptq"], "bits": [3, 3]}), run(method=("gptq", "awq"), bits=3)).index[0]
    1
    """
    for column, value in equal.items():
        runs = runs[runs[column].isin(value if isinstance(value, tuple) else (value,))]
    return runs


@dataclass(frozen=True)
class Comparison:
    """Pairs of runs (lines of `Page.runs`) compared on a quantity: the `rows` of a claim, called with the page."""

    pairs: Callable
    on: Quantity
    name: str
    missing: str = ""

    def __call__(self, page) -> pd.DataFrame:
        lines = []
        for first, second in self.pairs(page):
            both = paired(page.results, first["run_id"], second["run_id"], self.on)
            if both is None:
                continue
            estimate = both.estimate(test=True).map(self.on.change)
            labels = [{**line, "label": style_of(line["method"]).label} for line in (first, second)]
            name = self.name.format(first=labels[0], second=labels[1])
            facts = {fact: first[fact] for fact in FACTS} | {"other": second["run_id"], "name": name}
            lines.append(facts | vars(estimate) | {"first": first, "second": second})
        return pd.DataFrame(lines)


def compare(
    first: Mapping[str, object],
    second: Mapping[str, object] | None,
    match: tuple[str, ...] = (),
    name: str = "{first[label]} {first[target]}",
    on: Quantity = PERPLEXITY,
) -> Comparison:
    """Return the comparison of every run of one selection with the run of another that is equal in the columns `match`.

    Without a second selection it is the dense run. `name` is how a pair is called, with the columns of both runs and
    their method's `label`: `{first[target]}`.
    """

    def pairs(page) -> Iterable[tuple[dict, dict]]:
        dense = {"run_id": page.results.dense_id, "method": DENSE}
        others = select(page.runs, second or {})
        for line in select(page.runs, first).to_dict("records"):
            same = select(others[others["run_id"] != line["run_id"]], {column: line[column] for column in match})
            if second is None or len(same):
                yield line, dense if second is None else same.iloc[0].to_dict()

    if second is None:
        return Comparison(pairs, on, name, f"there is no run with {_words(first)}")
    missing = f"there are no two runs of equal {listing(match)}, one with {_words(first)} and one with {_words(second)}"
    return Comparison(pairs, on, name, missing)


def _words(equal: Mapping[str, object]) -> str:
    """A selection in words: `method GPTQ and bits 3`."""
    parts = []
    for column, value in equal.items():
        values = [str(one) for one in (value if isinstance(value, tuple) else (value,))]
        names = [style_of(one).label for one in values] if column == "method" else values
        parts.append(f"{column} {' or '.join(names)}" if names != [""] else f"no {column}")
    return listing(parts)
