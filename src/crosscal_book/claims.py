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

import numpy as np
import pandas as pd

from crosscal.results.compare import paired
from crosscal.results.frame import DENSE
from crosscal.results.quantities import PERPLEXITY, Quantity
from crosscal.stats import LEVEL, Estimate, holm
from crosscal_book.style import style_of
from crosscal_book.words import listing, p_text

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
DIRECTIONS = ("better", "worse", "no worse", "equal")
MANY = 4  # of more rows only the clearest on either side are written out
FACTS = ("run_id", "method", "target", "calibration", "weight")


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
class Rule:
    """A quantifier over rows and a direction with a margin."""

    quantifier: str
    direction: str
    by: float = 0.0
    share: float = 1.0

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"the direction is '{self.direction}'; give one of {', '.join(DIRECTIONS)}")


def every(direction: str, by: float = 0.0) -> Rule:
    """Return the rule of a claim about every comparison."""
    return Rule("every", direction, by)


def most(direction: str, by: float = 0.0, share: float = 0.5) -> Rule:
    """Return the rule of a claim about at least a `share` of the comparisons, refuted by none."""
    return Rule("most", direction, by, share)


def some(direction: str, by: float = 0.0) -> Rule:
    """Return the rule of a claim that one comparison proves."""
    return Rule("some", direction, by)


def mean(direction: str, by: float = 0.0) -> Rule:
    """Return the rule of a claim about one mean."""
    return Rule("mean", direction, by)


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
    says: str | Callable = ""
    brief: str | Callable = ""
    missing: str | Callable = ""
    each: str = ""
    otherwise: str = ""
    when: Callable = lambda _: True


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
        values = [
            style_of(v).label if column == "method" else str(v)
            for v in (value if isinstance(value, tuple) else (value,))
        ]
        parts.append(f"{column} {' or '.join(values)}" if values != [""] else f"no {column}")
    return listing(parts)


def corrected(families: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the rows of some claims with Holm's correction over all of them, of each kind of p-value they have."""
    families = [rows.copy() for rows in families]
    for name in ("p", "p_yes", "p_no"):
        having = [rows for rows in families if name in rows and f"{name}_holm" not in rows]
        adjusted = iter(holm([p for rows in having for p in rows[name]]))
        for rows in having:
            rows[f"{name}_holm"] = [next(adjusted) for _ in range(len(rows))]
    return families


def judged(rows: pd.DataFrame, rule: Rule, on: Quantity) -> pd.DataFrame:
    """Return rows with `gain` (positive is better), its `reach`, and whether each `shows` and `refutes` the claim."""
    sign, limit = 1.0 if on.higher_is_better else -1.0, rows.get("limit", on.neutral)
    gain, *ends = (sign * (rows[part] - limit) for part in ("value", "lo", "hi"))
    if rule.direction == "worse":
        gain, ends = -gain, [-end for end in ends]
    low, high = np.minimum(*ends), np.maximum(*ends)
    if "p_yes" in rows:
        shows, refutes = rows["p_yes_holm"] < LEVEL, rows["p_no_holm"] < LEVEL
    else:
        sure = rows["p_holm"] < LEVEL if "p_holm" in rows else (low > 0) | (high < 0)
        shows, refutes = {
            "no worse": (low > -rule.by, sure & (gain < -rule.by)),
            "equal": ((low > -rule.by) & (high < rule.by), sure & (gain.abs() > rule.by)),
        }.get(rule.direction, (sure & (gain > 0), (sure & (gain < 0)) | (~sure & (high < rule.by))))
    support = -gain.abs() if rule.direction == "equal" else gain
    support = rows.get("support", support)
    return rows.assign(gain=gain, support=support, reach=high, shows=shows, refutes=refutes)


def answer(rows: pd.DataFrame, rule: Rule) -> str:
    """Return what the quantifier says of judged rows.

    >>> rows = pd.DataFrame({"shows": [True, False], "refutes": [False, False]})
    >>> [answer(rows, Rule(quantifier, "better", share=0.5)) for quantifier in ("every", "most", "some")]
    ['cannot be told', 'holds', 'holds']
    """
    if rows.empty:
        return OPEN
    shows, refutes = rows["shows"].astype(bool), rows["refutes"].astype(bool)
    if rule.quantifier == "some":
        return HOLDS if shows.any() else FAILS if refutes.all() else OPEN
    share = rule.share if rule.quantifier == "most" else 1.0
    holds = shows.mean() >= share
    if rule.direction in ("no worse", "equal") and holds:
        return HOLDS
    return FAILS if refutes.any() else HOLDS if holds else OPEN


def verdicts_of(claim: Claim, rows: pd.DataFrame, page) -> list[Verdict]:
    """Return the verdict on a claim from its corrected rows; one for each value of the column `each`, where given."""
    if rows.empty:
        missing = claim.missing or getattr(claim.rows, "missing", "")
        missing = missing(page) if callable(missing) else missing
        return [Verdict(claim.otherwise or claim.sentence, OPEN, missing, claim.evidence, "", claim.paper)]
    parts = [part for _, part in rows.groupby(claim.each, sort=False)] if claim.each else [rows]
    found = []
    for part in parts:
        part = judged(part, claim.rule, claim.on)
        sentence = claim.sentence.format(**part.iloc[0]) if claim.each else claim.sentence
        effect = said(claim.says, claim, part, page) if claim.says else _effect(claim, part)
        brief = said(claim.brief, claim, part, page) if claim.brief else ""
        found.append(Verdict(sentence, answer(part, claim.rule), effect, claim.evidence, brief, claim.paper))
    return found


def said(template: str | Callable, claim: Claim, rows: pd.DataFrame, page) -> str:
    """Return an effect in a claim's own words: a function of page and rows, or a text with fields.

    Fields are the columns of the row that supports the claim least (of `some`: that shows it most, or may), its
    `estimate` or `change` with its unit, its `p` and how it `tested`;
    `count`, `shown` and `refuted` rows, names of those `showing` and `refuting`; the `default` effect
    and a `plain` list without tests.
    """
    if callable(template):
        return template(page, rows)
    least = rows.loc[rows["support"].idxmin()]
    if claim.rule.quantifier == "some":
        least = rows.loc[(rows["support"].where(rows["shows"]) if rows["shows"].any() else rows["reach"]).idxmax()]
    fields = {"count": len(rows), "shown": int(rows["shows"].sum()), "refuted": int(rows["refutes"].sum())}
    fields |= {"refuting": "; ".join(rows.loc[rows["refutes"], "name"]) or "none", "default": _effect(claim, rows)}
    fields["plain"] = listing([f"{line['name']} {_estimate(claim, line)}" for _, line in rows.iterrows()])
    fields |= {"showing": "; ".join(rows.loc[rows["shows"], "name"]) or "none"}
    change = (
        _estimate(claim, least).replace(" [", " points [") if claim.on.scale == "points" else _estimate(claim, least)
    )
    fields |= {"estimate": _estimate(claim, least), "change": change, "p": _p(least), "tested": _tested(least)}
    return template.format(**{**least, **fields})


def _effect(claim: Claim, rows: pd.DataFrame) -> str:
    """The comparisons in words, each with its interval and p; of many the clearest and the least clear."""
    texts = [f"{line['name']} {_estimate(claim, line)} ({_p(line)})" for _, line in rows.iterrows()]
    text = listing(texts)
    if len(rows) > MANY:
        ranked = rows.sort_values("support")
        clearest, least = (f"{line['name']} {_estimate(claim, line)}" for line in (ranked.iloc[-1], ranked.iloc[0]))
        text = f"clearest {clearest}; least clear {least} ({_count(rows)})"
    own = f"{claim.on.label} ratios" if claim.on.scale == "ratio" else f"changes of {claim.on.label}"
    return f"{claim.lead or own}: {text}"


def _count(rows: pd.DataFrame) -> str:
    shown, refuted = int(rows["shows"].sum()), int(rows["refutes"].sum())
    return f"{shown} of {len(rows)} comparisons establish it, {refuted} contradict it, Holm-corrected p < {LEVEL}"


def _estimate(claim: Claim, line: Mapping) -> str:
    return Estimate(line["value"], line["lo"], line["hi"], 0).text(claim.write or claim.on.write)


def _tested(line: Mapping) -> str:
    """How one-sided tests decided on a row."""
    if "p_yes_holm" not in line:
        return _p(line)
    yes, no = p_text(line["p_yes_holm"]), p_text(line["p_no_holm"])
    if line["shows"] or line["refutes"]:
        return f"one-sided {yes}" if line["shows"] else f"the claimed gain is excluded, one-sided {no}"
    return f"no gain is shown, one-sided {yes}, nor is the claimed one excluded, {no}"


def _p(line: Mapping) -> str:
    if not {"p_holm", "p_yes_holm"} & set(line.keys()):
        return ""
    return p_text(line["p_holm"] if "p_holm" in line else min(line["p_yes_holm"], line["p_no_holm"]))
