"""Made-up studies with known answers, which the chapter's verdicts, figures and tables must find."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crosscal.plan.parameters import CrossSettings
from crosscal.results.frame import Results, read_results
from crosscal.results.store import RunRecord, save_run
from crosscal.stats import Paired, student_mean, student_p
from crosscal.types import Row
from crosscal_book.chapters.cross_calibration import CHAPTER, _models
from crosscal_book.claims import FAILS, HOLDS, OPEN
from crosscal_book.numbers.mixes import BOTH, DOMAIN, DOUBLED, HALF, TOGETHER, _change_text, beyond_sources

TEXTS = {"pubmed": "biomedical", "legal": "legal", "wikipedia": "general", "news": "general", "task_prompts": "tasks"}
TASKS = {"sciq": "general", "arc_easy": "general", "pubmed_question": "biomedical", "case_summary": "legal"}
TARGETS = {"sparsegpt": "50%", "wanda": "50%", "dpruner": "50%", "gptq": "3 bits g128", "awq": "3 bits g128"}
WINDOWS, ITEMS = 8, 60


@dataclass(frozen=True)
class World:
    """What is true: losses in log perplexity, all in the mean of windows whose noise is `noise`.

    Missing weight w of a text costs `need` w^2 (quantization: times `quantized`), a text that is not there at all
    `need`; doubling the general text gains `doubling` on general text, D-Pruner costs `dpruner` more.
    """

    need: float = 0.1
    quantized: float = 0.3
    doubling: float = 0.005
    dpruner: float = 0.2
    together: float = 0.05
    noise: float = 0.004
    of_draws: float = 0.002
    flips: float = 2.0
    best: float | None = None
    only_domain: bool = False
    domains: tuple[str, ...] = ("pubmed", "legal")
    methods: tuple[str, ...] = ("sparsegpt", "wanda", "gptq", "awq")
    weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    models: tuple[str, ...] = ("made-up", "other")
    more: bool = True
    seeds: tuple[int, ...] = field(default=(0, 1, 2, 3, 4))


def write(folder: Path, world: World) -> Results:
    """The whole study in this world."""
    random = np.random.default_rng(7)
    for model in world.models:
        dense = {text: 2.5 + 0.3 * random.standard_normal(WINDOWS) for text in TEXTS}
        ability = {task: random.random(ITEMS) for task in TASKS}
        runs = [("dense", {}, 16, 0)]
        main = model == world.models[0]
        for method in world.methods if main else world.methods[:1]:
            for domain in world.domains:
                runs += [(method, _shares(domain, w), 16, 0) for w in world.weights if main or w in (0, 0.5, 1)]
        if main and world.more:
            runs += [("dpruner", _shares(domain, 0.5), 16, 0) for domain in world.domains]
            runs += [(method, {"c4": 1.0}, 32, 0) for method in world.methods[:2]]
            every = ("c4", *world.domains)
            if len(every) > 2:
                runs += [(method, {name: 1 / len(every) for name in every}, 16, 0) for method in world.methods]
            for seed in world.seeds[1:]:
                runs += [("sparsegpt", _shares(d, w), 16, seed) for d in world.domains for w in (0.0, 0.5, 1.0)]
        for number, (method, shares, n_windows, seed) in enumerate(runs):
            run_id = f"{model}-{number}"
            save_run(folder, _record(world, random, run_id, model, method, shares, n_windows, seed, dense, ability))
    return read_results(folder)


def _shares(domain: str, weight: float) -> dict[str, float]:
    shares = {"c4": 1 - weight, domain: weight}
    return {name: share for name, share in shares.items() if share}


def _loss(world: World, method: str, shares: dict[str, float], n_windows: int, text: str) -> float:
    if method == "dense":
        return 0.0
    weight = shares.get("c4" if TEXTS[text] in ("general", "tasks") else text, 0.0)
    if world.best is not None and len(shares) < 3:
        others = 1 - shares.get("c4", 0.0)
        loss = 0.3 + world.need * abs(others - world.best)
    else:
        need = 0.0 if world.only_domain and TEXTS[text] == "general" else world.need
        loss = 0.3 + need * (1 - weight) ** 2
    loss *= world.quantized if "bits" in TARGETS[method] else 1.0
    loss -= world.doubling if n_windows > 16 and TEXTS[text] == "general" else 0.0
    loss += world.dpruner if method == "dpruner" else 0.0
    return loss + (world.together - world.need * (1 - weight) ** 2 + world.need / 4 if len(shares) > 2 else 0.0)


def _record(world, random, run_id, model, method, shares, n_windows, seed, dense, ability) -> RunRecord:
    rows, items = [], {}
    of_draw = world.of_draws * random.standard_normal() if method != "dense" else 0.0
    for text, domain in TEXTS.items():
        noise = 0.0 if method == "dense" else of_draw + world.noise * random.standard_normal(WINDOWS)
        nll = dense[text] + _loss(world, method, shares, n_windows, text) + noise
        items[text] = {"nll": nll.tolist()}
        rows.append((domain, text, "perplexity", float(np.exp(nll.mean())), WINDOWS))
    for task, domain in TASKS.items():
        if seed and domain != "general":
            continue
        text = {"biomedical": "pubmed", "legal": "legal"}.get(domain, "news")
        correct = (ability[task] < 0.9 - world.flips * _loss(world, method, shares, n_windows, text)).astype(int)
        items[task] = {"id": list(range(ITEMS)), "correct": correct.tolist()}
        rows.append((domain, task, "accuracy", float(correct.mean()), ITEMS))
    made = [_row(run_id, model, method, shares, n_windows, seed, row) for row in rows]
    provenance = {"tasks": {task: {"chance": 0.25} for task in TASKS}}
    return RunRecord(run_id, {"calibration": list(shares.items())}, provenance, made, [], items)


def _row(run_id, model, method, shares, n_windows, seed, values) -> Row:
    domain, eval_set, metric, value, n = values
    pattern = TARGETS.get(method, "0%")
    weight = list(shares.values())[-1] if len(shares) > 1 else 1.0
    return Row(
        run_id, "full", model, method, pattern, 0.5, 16, "g128" if "bits" in pattern else "", 16.0, "sublayer",
        "+".join(shares), weight, n_windows if shares else 0, 1024, seed, domain, eval_set, metric, value, 0.95 * value,
        1.05 * value, n, "fraction of items" if metric == "accuracy" else "per token", metric == "accuracy",
        10.0 + seed, 2**28, "cpu", json.dumps({"torch": "2.13.0"}), "0123456789",
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A function from a world to its results, each made once."""
    made = {}

    def make(**changes) -> Results:
        world = World(**changes)
        if world not in made:
            made[world] = write(tmp_path_factory.mktemp("results") / "full", world)
        return made[world]

    return make


def page_of(results: Results, **settings):
    return CHAPTER.page(results, CrossSettings(second_model="other", **settings))


def answers(results: Results) -> dict[str, str]:
    """Each verdict's answer by a word of its claim."""
    words = ("D-Pruner", "In pruning", "In quantization", "tasks", "default", "doubling the general text, on general")
    words += ("doubling", "gains less", "One mix", "too", "drawn")
    found = {}
    for verdict in page_of(results).verdicts():
        name = next((word for word in words if word in verdict.claim), verdict.claim)
        found[name] = verdict.answer
    return found


GENERAL_SIDE = "doubling the general text, on general"


def test_a_world_in_which_mixing_helps(study):
    """Doubled general text is better on general texts, as it is not diluted there: the sides are told apart."""
    found = answers(study())
    assert found == {
        "In pruning": HOLDS, "In quantization": HOLDS, "tasks": HOLDS, "default": HOLDS, "doubling": HOLDS,
        GENERAL_SIDE: FAILS, "D-Pruner": HOLDS, "gains less": HOLDS, "One mix": FAILS, "too": HOLDS, "drawn": HOLDS,
    }  # fmt: skip


def test_a_world_in_which_the_text_does_not_matter(study):
    found = answers(study(need=0.0, doubling=0.0, dpruner=0.0, together=0.0, noise=0.002, of_draws=0.0001))
    assert found == {
        "In pruning": FAILS, "In quantization": FAILS, "tasks": FAILS, "default": HOLDS, "doubling": FAILS,
        GENERAL_SIDE: FAILS, "D-Pruner": FAILS, "gains less": FAILS, "One mix": HOLDS, "too": FAILS, "drawn": FAILS,
    }  # fmt: skip


def test_a_world_too_noisy_to_tell(study):
    found = answers(study(need=0.02, doubling=0.02, dpruner=0.0, together=0.0, noise=0.2, of_draws=0.0, flips=0.5))
    assert set(found.values()) == {OPEN}


def test_another_weight_may_be_clearly_better(study):
    results = study(best=0.75, models=("made-up",), more=False)
    page = page_of(results)
    (verdict,), found = page.verdicts("half-is-a-good-default"), page.rows("half-is-a-good-default")
    assert verdict.answer == FAILS
    assert "weight 0.75" in verdict.effect
    assert (found["best"] == 0.75).all()
    pruned = found[found["target"] == "50%"]["value"]
    assert np.log(pruned.to_numpy()) == pytest.approx(0.25 * 0.1, abs=0.006)


def test_one_gain_of_two_is_not_enough(study):
    found = answers(study(only_domain=True, together=0.0, noise=0.002, of_draws=0.0001))
    assert {name: found[name] for name in ("In pruning", "In quantization", "tasks", "too", "drawn")} == dict.fromkeys(
        ("In pruning", "In quantization", "tasks", "too", "drawn"), FAILS
    )


def test_a_quick_study_says_what_it_lacks(study):
    results = study(domains=("pubmed",), methods=("sparsegpt",), weights=(0.0, 0.5, 1.0), models=("m",), more=False)
    by_claim = {verdict.claim: verdict for verdict in page_of(results).verdicts()}
    assert sum(verdict.answer == OPEN for verdict in by_claim.values()) == 6
    assert all(verdict.effect for verdict in by_claim.values())
    assert "**Takeaways**" in str(page_of(results).takeaways())


@pytest.mark.parametrize("weights", [(0.0,), (0.0, 0.5), (0.5,), (1.0,)])
def test_missing_runs_never_stop_the_chapter(study, weights):
    results = study(weights=weights, methods=("sparsegpt",), models=("m",), more=False)
    assert set(answers(results).values()) == {OPEN}
    for figure in figures(results):
        assert figure.caption
    for table in tables(results):
        assert "|" in str(table)


def test_every_verdict_holds_a_number_with_an_interval_and_links_to_a_figure_that_is_drawn(study):
    results = study()
    names = {figure.name for figure in figures(results)}
    for verdict in page_of(results).verdicts():
        assert "[" in verdict.effect, verdict
        assert verdict.evidence in names, verdict


def test_models_are_told_apart(study):
    apart = _models(page_of(study()))
    assert list(apart) == ["made-up", "other"]
    for model, mixes in apart.items():
        assert mixes.results.dense_id == f"{model}-0"
        assert set(mixes.results.items) == set(mixes.results.run_ids)


def test_a_model_of_which_only_the_dense_run_is_stored_waits(study):
    results = study()
    first, second = results.rows["model"].unique()
    compressed = (results.rows["model"] == second) & (results.rows["method"] != "dense")
    waiting = Results(results.rows[~compressed], results.items, results.provenance, results.configs)
    assert list(_models(page_of(waiting))) == [first]
    assert len(page_of(waiting).verdicts()) == len(page_of(study(models=(first,))).verdicts())


def test_runs_are_sorted_by_what_they_were_calibrated_on(study):
    main = _models(page_of(study()))["made-up"]
    assert main.sources == ["pubmed", "legal"]
    assert len(main.pairs()) == 8
    pair = main.pairs()[0]
    assert (pair.method, main.weights(pair)) == ("wanda", [0.0, 0.25, 0.5, 0.75, 1.0])
    calibration = {role: main.results.describe_run(main.run(pair, 0.0, role)) for role in (DOUBLED, TOGETHER)}
    assert calibration[DOUBLED]["n_windows"] == 32
    assert calibration[TOGETHER]["calibration"] == "c4+pubmed+legal"
    assert main.results.describe_run(main.run(pair, 1.0))["calibration"] == "pubmed"
    assert not main.has(pair, HALF, seed=3)
    assert main.has(pair._replace(method="sparsegpt"), HALF, seed=3)


def test_losses_are_the_known_ones(study):
    results = study(noise=1e-9, of_draws=0.0)
    main = _models(page_of(results))["made-up"]
    pair = next(pair for pair in main.pairs() if pair.method == "sparsegpt")
    losses = {w: main.loss(main.run(pair, w), pair.source, DOMAIN).value for w in main.weights(pair)}
    assert losses == pytest.approx({w: 0.3 + 0.1 * (1 - w) ** 2 for w in losses}, abs=1e-6)
    mean = main.loss(main.run(pair, 0.25), pair.source, BOTH).value
    assert mean == pytest.approx(0.3 + 0.1 * (0.75**2 + 0.25**2) / 2, abs=1e-6)


def test_a_missing_general_source_is_no_error(study):
    assert {verdict.answer for verdict in page_of(study(), general="wikipedia").verdicts()} == {OPEN}


def test_windows_that_runs_share_count_once():
    values = np.array([1.0, -0.5, 2.0, 0.3])
    one = Paired.equal({"x": values})
    assert Paired.pool([one, one, one]).p_above() == one.p_above()
    assert Paired.pool([one, one]).estimate() == one.estimate()


def test_p_values_are_students():
    one = Paired.equal({"a": np.array([1.0, 2.0, 3.0, 4.0, 5.0])})
    scale = math.sqrt(2.5 / 5)
    assert one.p_above(3.0 - 2.132 * scale) == pytest.approx(0.05, abs=1e-3)  # t of 4 degrees of freedom
    assert one.p_below(3.0 + 2.132 * scale) == pytest.approx(0.05, abs=1e-3)
    assert Paired.equal({"a": np.full(5, 0.1)}).p_above() == 1 / 32
    assert Paired.equal({"a": np.zeros(5)}).p_above() == 1.0
    assert Paired.equal({"a": np.array([5.0])}).p_above() == 1.0


def test_a_difference_between_texts_is_no_noise():
    wiggle = 0.01 * np.array([1.0, -1.0, 1.0, -1.0])
    apart = Paired.equal({"a": 0.50 + wiggle, "b": -0.47 + wiggle})
    alike = Paired.equal({"a": 0.015 + wiggle, "b": 0.015 + wiggle})
    assert apart.p_above() == pytest.approx(alike.p_above())
    assert apart.p_above() < 0.05


def test_the_p_of_a_limit_is_that_of_the_shifted_values():
    part = Paired({"a": np.array([0.02, 0.03, 0.01, 0.05]), "b": np.array([0.04, 0.02])}, {"a": 0.5, "b": 0.5})
    shifted = Paired({name: values - 0.01 for name, values in part.values.items()}, part.weights)
    assert part.p_above(0.01) == pytest.approx(shifted.p_above())
    assert part.p_below(0.1) == pytest.approx((-part).p_above(-0.1))
    assert part.value == pytest.approx(0.5 * 0.0275 + 0.5 * 0.03)


def test_a_share_and_an_interval_student_mean():
    whole = Paired.equal({"a": np.array([1.0, 2.0, 3.0, 4.0])})
    half = Paired.equal({"a": whole.values["a"] / 2})
    found = half.share_of(whole)
    assert (found.value, found.lo, found.hi) == pytest.approx((0.5, 0.5, 0.5))
    draws = student_mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert draws.hi - draws.value == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert math.isnan(student_mean([1.0]).lo)
    assert student_p([1.0, 2.0, 3.0, 4.0, 5.0], draws.lo, above=True) == pytest.approx(0.025)
    assert student_p([1.0, 2.0, 3.0, 4.0, 5.0], draws.hi, above=False) == pytest.approx(0.025)
    assert student_p([1.0, 1.0], 0.0, above=True) == 0.0
    assert _change_text(Paired.equal({"a": np.full(3, -0.1)})) == "−9.5 % [−9.5 %, −9.5 %]"


def figures(results: Results) -> list:
    """All figures of the chapter."""
    page = page_of(results)
    return [page.figure(name) for name in CHAPTER.figures]


def tables(results: Results) -> list:
    """All tables of the chapter."""
    page = page_of(results)
    return [page.table(name) for name in CHAPTER.tables]


def test_figures_say_what_they_show_and_are_repeatable(study):
    results = study()
    for first, second in zip(figures(results), figures(results), strict=True):
        assert first == second
        assert any(character.isdigit() for character in first.caption), first.name
        assert len(first.alt) > 40
    assert len({figure.name for figure in figures(results)}) == len(figures(results))


def test_tables_have_equally_many_cells_and_intervals_in_every_line(study):
    for table in tables(study()):
        lines = [line for line in str(table).splitlines() if line.startswith("|")]
        assert len(lines) > 3
        assert len({line.count("|") for line in lines}) == 1
        if "seconds" not in lines[0]:
            assert all("[" in line for line in lines[2:]), table


def test_the_table_of_runs_has_every_run_once_for_each_domain(study):
    results = study()
    lines = str(page_of(results).table("runs")).splitlines()
    body = [line for line in lines if line.startswith("|")][2:]
    runs = sum(len(mixes.runs) for mixes in _models(page_of(results)).values())
    dense = sum(len(mixes.sources) for mixes in _models(page_of(results)).values())
    assert len(body) == runs + dense


def test_a_mix_beyond_the_line_between_its_sources_is_told_from_a_compromise():
    def path(*points):
        lines = [(weight, *point) for weight, point in zip((0.0, 0.5, 1.0), points, strict=True)]
        return pd.DataFrame(lines, columns=["weight", "x", "value"])

    assert beyond_sources(path((0.4, 0.1), (0.2, 0.2), (0.1, 0.4)))
    assert not beyond_sources(path((0.4, 0.1), (0.3, 0.3), (0.1, 0.4)))
    assert beyond_sources(path((0.4, 0.4), (0.2, 0.2), (0.3, 0.5)))
    assert not beyond_sources(path((0.2, 0.2), (0.3, 0.3), (0.3, 0.5)))
