"""The numbers below every figure of every chapter are data, and agree with the stored rows they come from.

Whatever a figure shows of a registered quantity (perplexity, divergence, accuracy, ...) is computed here once more, by
other means than the chapters': from the single values of `results/full`, by arithmetic, as `RECIPES` say.
"""

import io
import json
import math
import re
from collections.abc import Callable
from functools import cache
from statistics import mean

import numpy as np
import pandas as pd
import pytest

from crosscal.paths import checkout
from crosscal.plan.chapters import CHAPTERS
from crosscal.results.compare import PROMPTS
from crosscal_book.chapter import Page, chapter_named
from crosscal_book.pages.generated import _executed
from crosscal_book.style import Figure

pytestmark = pytest.mark.slow

FULL = checkout() / "results" / "full"
SENTENCES = {"fig-report-experts": "no model of the study has experts"}  # where a sentence stands for the figure
FIGURES = [(name, one) for name in CHAPTERS for one in chapter_named(name).figures if one not in SENTENCES]
ACCURACIES = ("accuracy", "accuracy_per_char")
DOMAINS = {"pubmed": "biomedical", "legal": "legal"}
NUMBERS = ("x", "x_lo", "x_hi", "value", "lo", "hi", "n", "p", "p_holm", "weight")
LOOKS = r"_.*|y|offset|tick|tick_?label|colou?r|marker|hollow|label"
# Columns that are empty in some rows: points without an interval, means of several runs, which have no single weight.
SPARSE = {
    "fig-token-divergence": {"lo", "hi", "weight"},
    "fig-answers": {"p_holm"},
    "fig-cross-draws": {"lo", "hi", "n", "weight"},
    "fig-quantization-origin": {"lo", "hi", "n", "weight"},
    "fig-forgetting-pairs": {"weight"},
    "fig-forgetting-robustness": {"weight"},
}


@cache
def stored(run_id: str) -> dict:
    """A run's record, straight from its file."""
    return json.loads((FULL / f"{run_id}.json").read_text(encoding="utf-8"))


@cache
def values(run_id: str) -> dict[tuple[str, str], float]:
    """The values of a run by evaluation set and metric."""
    return {(row["eval_set"], row["metric"]): row["value"] for row in stored(run_id)["rows"]}


@cache
def sets(run_id: str, metrics: tuple[str, ...]) -> dict[str, str]:
    """The texts or tasks that a run has, with their domains."""
    return {row["eval_set"]: row["domain"] for row in stored(run_id)["rows"] if row["metric"] in metrics}


@cache
def doable(run_id: str) -> set[str]:
    """The tasks with an accuracy whose interval lies above chance."""
    record = stored(run_id)
    rows = [row for row in record["rows"] if row["metric"] in ACCURACIES]
    return {row["eval_set"] for row in rows if row["lo"] > record["provenance"]["tasks"][row["eval_set"]]["chance"]}


class Line:
    """A line of a figure, and arithmetic on the stored values of its run: against another run, or the dense one."""

    def __init__(self, line: dict, frame: pd.DataFrame, dense: dict[str, str]):
        self.line, self.frame, self.run, self.panel = line, frame, line["run_id"], line.get("panel", "")
        self.dense = dense[stored(self.run)["config"]["model"]]
        self.other = line.get("other") or self.dense

    def shared(self, *metrics: str) -> dict[str, str]:
        """The texts or tasks that all runs of the figure have, with their domains."""
        runs = [run for run in self.frame["run_id"].unique() if isinstance(run, str) and run]
        return {k: v for k, v in sets(self.run, metrics).items() if all(k in sets(run, metrics) for run in runs)}

    def texts(self, domain: str = "") -> list[str]:
        return [t for t, of in self.shared("perplexity").items() if of == domain or (not domain and of != PROMPTS)]

    def tasks(self, domain: str = "") -> list[str]:
        """The tasks that the dense model can do, of a domain or all that are no perturbed copies."""
        known = {t: of for t, of in self.shared(*ACCURACIES).items() if t in doable(self.dense)}
        return [t for t, of in known.items() if domain in (of, "") and not t.endswith(("_typos", "_rephrased"))]

    def log_ratio(self, *texts: str, other: str = "") -> float:
        """Mean over texts, all but the tasks' prompts unless given, of the logarithm of perplexity's ratio."""
        one, two = values(self.run), values(other or self.other)
        return mean(math.log(one[t, "perplexity"] / two[t, "perplexity"]) for t in texts or self.texts())

    def ratio(self, *texts: str) -> float:
        return math.exp(self.log_ratio(*texts))

    def sides(self, other: str = "") -> tuple[float, float]:
        """The log ratios on the domain's text and on the general texts."""
        return self.log_ratio(self.line["domain"], other=other), self.log_ratio(*self.texts("general"), other=other)

    def js(self, *texts: str) -> float:
        return mean(values(self.run)[text, "js_divergence"] for text in texts or self.texts())

    def score(self, task: str, run_id: str = "") -> float:
        """A task's score in percent."""
        held = values(run_id or self.run)
        return 100 * next(held[task, kind] for kind in (*ACCURACIES, "auc") if (task, kind) in held)

    def accuracy(self, domain: str = "") -> float:
        """The change of mean accuracy in points."""
        return mean(self.score(task) - self.score(task, self.other) for task in self.tasks(domain))

    def measure(self) -> float:
        """Perplexity, divergence or accuracy over all texts or tasks, by the panel's name."""
        return {"p": self.ratio, "j": self.js, "a": self.accuracy}[self.panel[0]]()


def _accuracy_of_domain(at: Line) -> float:
    return mean(at.score(task) for task in at.tasks(at.panel.split()[0]))


def _gain(at: Line) -> float:
    """The change of perplexity in percent, on the domain's text, the general texts, or both, by the panel's name."""
    domain, general = at.sides()
    return 100 * math.expm1({"d": domain, "g": general, "m": (domain + general) / 2}[at.panel[0]])


def _from_half(at: Line) -> float:
    same = at.frame[(at.frame["name"] == at.line["name"]) & (at.frame["weight"] == 0.5)]
    return 100 * math.expm1(mean(at.sides(other=same["run_id"].iloc[0])))


def _answers(at: Line) -> float:
    metric = {"exact match": "exact_match", "F1": "f1", "ROUGE-1": "rouge1"}[at.panel]
    return 100 * (values(at.run)[at.line["set"], metric] - values(at.other)[at.line["set"], metric])


def _cost(at: Line) -> float:
    first = stored(at.run)["rows"][0]
    return {"s": first["seconds"], "p": first["peak_bytes"] / 2**20}[at.panel[0]]


def _card(at: Line) -> float:
    if at.panel.startswith("accuracy"):
        return at.accuracy()
    measure = at.ratio if at.panel.startswith("perplexity") else at.js
    return measure(*(at.texts("general") if at.panel.endswith("general text") else [at.panel.split(", ")[1]]))


# How every column of a registered quantity is made again; None where a line is about more than its run.
RECIPES: dict[str, dict[str, Callable[[Line], float | None]]] = {
    "fig-loss-perplexity": {"x": Line.ratio, "value": Line.accuracy},
    "fig-perplexity": {"value": lambda at: at.ratio(at.panel)},
    "fig-accuracy": {"value": _accuracy_of_domain},
    "fig-tasks": {"value": lambda at: at.score(at.panel)},
    "fig-loss-divergence": {"x": Line.measure, "value": Line.accuracy},
    "fig-sources": {"value": lambda at: at.measure() if at.line["draws"] == 1 else None},
    "fig-matrix": {"value": lambda at: at.ratio(at.panel) if at.line["calibration"] != "c4" else None},
    "fig-size": {"value": Line.ratio},
    "fig-answers": {"value": lambda at: _answers(at) if at.line["series"] != "mean" else None},
    "fig-cross-gains": {"value": lambda at: _gain(at) if at.line["series"] != "mean" else None},
    "fig-mix-weight": {"value": _from_half},
    "fig-cross-rivals": {"value": _gain},
    "fig-frontier": {"x": lambda at: at.sides()[0], "value": lambda at: at.sides()[1]},
    "fig-frontier-second": {"x": lambda at: at.sides()[0], "value": lambda at: at.sides()[1]},
    "fig-cross-tasks": {"x": lambda at: at.accuracy(DOMAINS[at.panel]), "value": lambda at: at.accuracy("general")},
    "fig-cross-draws": {"value": lambda at: at.sides()[at.panel[0] == "g"] if at.line["series"] == "draw" else None},
    "fig-quantization-storage": {"value": Line.measure},
    "fig-quantization-tasks": {"value": Line.accuracy},
    "fig-quantization-pairs": {"value": lambda at: at.ratio() if at.line["claim"] != "groups-beat-rows" else None},
    "fig-quantization-origin": {"value": lambda at: values(at.run)["layers", "layer_error"]},
    "fig-forgetting-perplexity": {"x": Line.ratio},
    "fig-forgetting-storage": {"value": Line.measure},
    "fig-costs-runs": {"value": lambda at: at.ratio() if at.panel.startswith("perplexity") else _cost(at)},
    "fig-costs-pairs": {"value": Line.ratio},
    "fig-report-card": {"value": _card},
    "fig-loss-aware": {"value": lambda at: at.ratio(at.line["name"])},
    "fig-loss-aware-parts": {"value": Line.ratio},
}
# Stored losses have five digits: what that is in per cent of perplexity, where a difference of differences is near 0.
ROUNDED = dict.fromkeys(("fig-cross-gains", "fig-mix-weight", "fig-cross-rivals"), 5e-4)
# Figures of no single run's registered quantity.
OTHERS = {
    "fig-correlations": "rank correlations over runs",
    "fig-token-divergence": "quantiles over tokens",
    "fig-effects": "spreads over runs",
    "fig-forgetting-skills": "shares of a skill kept, over tasks chosen by kind",
    "fig-forgetting-pairs": "differences of such shares",
    "fig-forgetting-robustness": "differences of such shares",
    "fig-costs-textbook": "timings of the benchmarks",
    "fig-costs-scaling": "timings of the benchmarks",
}


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    """The chapters on the runs that the committed copies were made from."""
    return {page.chapter.name: page for page in _executed(checkout() / "book")}


@pytest.fixture(scope="module")
def drawn(pages) -> Callable[[str, str], Figure]:
    """A figure of a chapter, drawn once."""
    return cache(lambda chapter, name: pages[chapter].figure(name))


@cache
def dense_runs(page: Page) -> dict[str, str]:
    """By model, the dense run that read and was asked the most."""
    ids = [run_id for run_id in page.every.run_ids if stored(run_id)["config"]["method"] == "dense"]
    ids.sort(key=lambda run_id: len(sets(run_id, ("perplexity", *ACCURACIES))))
    return {stored(run_id)["config"]["model"]: run_id for run_id in ids}


def disagreements(page: Page, name: str, frame: pd.DataFrame) -> list[str]:
    """What a figure says of single runs that their stored values do not."""
    found = []
    for column, recipe in RECIPES[name].items():
        for line in frame[frame["run_id"].fillna("") != ""].to_dict("records"):
            expected = recipe(Line(line, frame, dense_runs(page)))
            if expected is not None and not math.isclose(
                line[column], expected, rel_tol=1e-4, abs_tol=ROUNDED.get(name, 1e-5)
            ):
                found.append(f"{name}: {column} of {line} is {expected} in {FULL.name}/{line['run_id']}.json")
    return found


def test_a_sentence_stands_only_where_there_is_nothing_to_draw(drawn):
    assert all(drawn("report_card", name).frame.empty for name in SENTENCES)


@pytest.mark.parametrize(("chapter", "name"), FIGURES)
def test_the_csv_is_the_frame_behind_the_figure(drawn, chapter, name):
    figure = drawn(chapter, name)
    given = pd.read_csv(
        io.StringIO(figure.csv), comment="#", keep_default_na=False, na_values={c: [""] for c in NUMBERS}
    )
    frame = figure.frame.reset_index(drop=True)
    assert set(given) == set(frame)
    for column in frame:
        if column in NUMBERS:
            np.testing.assert_allclose(given[column], pd.to_numeric(frame[column]), rtol=1e-5)
        elif not pd.api.types.is_numeric_dtype(frame[column]):
            assert list(given[column].astype(str)) == list(frame[column].fillna("").astype(str))


@pytest.mark.parametrize(("chapter", "name"), FIGURES)
def test_the_numbers_of_a_figure_are_data(drawn, pages, chapter, name):
    figure = drawn(chapter, name)
    frame, explained = figure.frame, set(re.findall(r"^# (\w+): ", figure.csv, re.MULTILINE))
    assert not [column for column in frame if re.fullmatch(LOOKS, column)]
    assert {"value", *({"x"} & set(frame)), *({"lo", "hi", "run_id", "other", "n", "p"} & set(frame))} <= explained
    for column in set(NUMBERS) & set(frame) - SPARSE.get(name, set()):
        assert np.isfinite(pd.to_numeric(frame[column])).all(), column
    for column in {"run_id", "other"} & set(frame):
        assert set(frame[column].dropna()) - {""} <= set(pages[chapter].every.run_ids)
    if {"lo", "hi"} <= set(frame):
        ends = frame.dropna(subset=["lo", "hi"])
        assert (ends["lo"] <= ends["value"] + 1e-9).all()
        assert (ends["value"] <= ends["hi"] + 1e-9).all()
    keys = [column for column in frame if column not in NUMBERS or column in ("x", "weight")]
    assert not frame.duplicated(keys).any(), "two lines of one key"


@pytest.mark.parametrize(("chapter", "name"), FIGURES)
def test_a_figure_agrees_with_the_stored_rows(drawn, pages, chapter, name):
    assert (name in RECIPES) != (name in OTHERS), "say how its values follow from stored rows, or why they do not"
    if name in RECIPES:
        frame = drawn(chapter, name).frame
        assert disagreements(pages[chapter], name, frame) == []


@pytest.mark.parametrize(("chapter", "name"), [(chapter, name) for chapter, name in FIGURES if name in RECIPES])
def test_one_wrong_number_is_found(drawn, pages, chapter, name):
    frame = drawn(chapter, name).frame.reset_index(drop=True)
    page = pages[chapter]
    for column, recipe in RECIPES[name].items():
        lines = frame[frame["run_id"].fillna("") != ""].to_dict("index").items()
        first = next(number for number, line in lines if recipe(Line(line, frame, dense_runs(page))) is not None)
        wrong = frame.copy()
        wrong.loc[first, column] = 1.01 * wrong.loc[first, column] + 0.01
        assert len(disagreements(page, name, wrong)) == 1
