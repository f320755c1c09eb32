"""Chapter 3 on made-up runs whose effects are known."""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from crosscal.plan.parameters import CalibrationSettings
from crosscal.results.frame import Results, read_results
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.results.store import RunRecord, save_run
from crosscal.stats import DRAWS, Estimate
from crosscal.types import Row
from crosscal_book.chapters.calibration import CHAPTER
from crosscal_book.claims import FAILS, HOLDS, OPEN
from crosscal_book.numbers.sources import Sources
from crosscal_book.numbers.written import Written

TEXTS = {"pubmed": "biomedical", "legal": "legal", "wikipedia": "general", "news": "general", "task_prompts": "tasks"}
SOURCES = ("c4", "pubmed", "legal", "wikipedia", "news", "alpaca", "self", "random")
SHIFTS = {"c4": 0.0, "pubmed": 0.06, "legal": 0.12, "wikipedia": 0.02, "news": 0.05, "alpaca": 0.09, "self": 0.0}
GROUPS = (("sparsegpt", "50%"), ("wanda", "50%"), ("gptq", "3 bits g128"))
WINDOWS, ITEMS, ANSWERS = 8, 40, 60


def page_of(results: Results):
    return CHAPTER.page(results, CalibrationSettings())


def ends(draws: np.ndarray) -> Estimate:
    return Estimate.of_draws(draws, len(draws) - 1)


@dataclass(frozen=True)
class World:
    """What is true in a made-up study: shifts of log perplexity, and of the chance that an answer is right."""

    shifts: dict = field(default_factory=lambda: dict(SHIFTS))
    random: float = 0.8
    draw: float = 0.004
    strength: dict = field(default_factory=lambda: {"sparsegpt": 1.0, "wanda": 0.35, "gptq": 0.2})
    own: float = -0.2
    size: float = 0.3
    late: float = 0.0
    seen: float = 0.15
    unseen: float = -0.15
    magnitude: float = 1.5
    sources: tuple = SOURCES
    draws: int = 5
    seed: int = 0


def write_world(folder, world: World) -> None:
    """A run for every setting of the chapter, all on the same windows and items."""
    random = np.random.default_rng(world.seed)
    base = {text: 2.8 + 0.2 * random.standard_normal(WINDOWS) for text in TEXTS}
    ability = {task: random.random(ITEMS) for task in ("sciq", "piqa")}
    talent = {name: random.random(ANSWERS) for name in ("alpaca answers", "squad answers")}

    def run(name, method="dense", pattern="0%", source="", n_windows=16, window=64, seed=0, shift=0.0, answers=False):
        damage = 0.0 if method == "dense" else 0.5 + shift
        items, rows = {}, []
        own = {text: damage + (world.own if text == source else 0.0) * (method != "dense") for text in TEXTS}
        for text, domain in TEXTS.items():
            nll = base[text] + own[text] + 0.002 * random.standard_normal(WINDOWS) * (method != "dense")
            items[text] = {"nll": nll.tolist()}
            rows.append((domain, text, "perplexity", math.exp(nll.mean()), WINDOWS, False))
            if method != "dense":
                js = 0.05 * own[text] + 0.001 * random.standard_normal(WINDOWS)
                items[text]["js_divergence"] = js.tolist()
                rows.append((domain, text, "js_divergence", js.mean(), WINDOWS, False))
        for task, level_ in ability.items():
            correct = (level_ < 0.8 - 0.1 * damage).astype(int)
            items[task] = {"id": list(range(ITEMS)), "correct": correct.tolist()}
            rows.append(("general", task, "accuracy", correct.mean(), ITEMS, True))
        for set_name, gain in (("alpaca answers", world.seen), ("squad answers", world.unseen)) if answers else ():
            f1 = np.clip(0.4 * talent[set_name] + 0.3 + gain * (source == "alpaca"), 0, 1)
            f1 = np.clip(f1 + 0.02 * random.standard_normal(ANSWERS), 0, 1)
            scores = {"exact_match": (f1 > 0.7).astype(float), "f1": f1, "rouge1": 0.9 * f1}
            items[set_name] = {"id": list(range(ANSWERS))} | {k: v.tolist() for k, v in scores.items()}
            rows += [("instruction", set_name, k, v.mean(), ANSWERS, True) for k, v in scores.items()]
        facts = (method, pattern, source, n_windows if source else 0, window if source else 0, seed)
        made = [_row(name, facts, row) for row in rows]
        chance = {task: {"chance": 0.25} for task in ability}
        config = {"method": method, "answers": ["alpaca", "squad"] if answers else []}
        save_run(folder, RunRecord(name, config, {"tasks": chance}, made, [], items))

    run("dense-with-answers", answers=True)
    run("dense")
    run("magnitude-50", "magnitude", "50%", shift=world.magnitude, answers=True)
    for method, pattern in GROUPS:
        strength = world.strength[method]
        name = f"{method}-{pattern.replace(' ', '').replace('%', '')}"
        for source in world.sources:
            shift = world.random if source == "random" else strength * world.shifts[source]
            run(f"{name}-{source}", method, pattern, source, shift=shift)
        # draws with this very SD, so that the tests know it
        deviations = np.linspace(-1, 1, world.draws) if world.draws > 1 else np.zeros(1)
        deviations = deviations[np.argsort(np.abs(deviations), kind="stable")]
        scale = world.draw / deviations.std(ddof=1) if world.draws > 1 else 0.0
        for seed, deviation in list(enumerate(deviations))[1:]:
            run(f"{name}-c4-draw{seed}", method, pattern, "c4", seed=seed, shift=scale * deviation)
        steps = {1: world.size, 4: world.size / 3, 64: world.late, 256: 0.0}
        for count, shift in steps.items():
            run(f"{name}-c4-{count}w", method, pattern, "c4", n_windows=count, window=32, shift=shift)
        run(f"{name}-c4-long", method, pattern, "c4", n_windows=4, window=256, shift=0.01)
        for source in ("c4", "alpaca") if method != "gptq" else ():
            run(f"{name}-{source}-a", method, pattern, source, shift=strength * world.shifts[source], answers=True)


def _row(run_id, facts, values) -> Row:
    method, pattern, source, n_windows, window, seed = facts
    domain, eval_set, metric, value, n, higher = values
    return Row(
        run_id, "quick", "made-up", method, pattern, 0.5, 16, "", 16.0, "sublayer", source, 1.0, n_windows, window,
        seed, domain, eval_set, metric, float(value), 0.9 * value, 1.1 * value, n, "unit", higher, 1.0, 1_000, "cpu",
        "torch 2.13.0", "0123456789",
    )  # fmt: skip


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes results of a world, each once."""
    made: dict[str, Results] = {}

    def world(**changes) -> Results:
        key = repr(changes)
        if key not in made:
            folder = tmp_path_factory.mktemp("world") / "quick"
            write_world(folder, replace(World(), **changes))
            made[key] = read_results(folder)
        return made[key]

    return world


def without(results: Results, *words: str) -> Results:
    """The results without the runs whose id holds one of these words."""
    kept = [i for i in results.run_ids if not any(word in i for word in words)]
    rows = results.rows[results.rows["run_id"].isin(kept)].reset_index(drop=True)
    return replace(results, rows=rows, items={i: results.items[i] for i in kept})


def test_each_setting_counts_once_and_the_dense_run_without_answers_is_the_reference(make):
    evidence = Sources(make(), "c4")
    assert evidence.results.dense_id == "dense"
    assert (evidence.size, evidence.seed) == ((16, 64), 0)
    assert not evidence.runs.duplicated(["method", "target", "calibration", "n_windows", "window", "seed"]).any()
    assert evidence.sources() == ["c4", "alpaca", "legal", "news", "pubmed", "wikipedia", "self", "random"]
    assert len(evidence.draws(("wanda", "50%"), "c4")) == 5
    assert evidence.sets(PERPLEXITY) == ("pubmed", "legal", "wikipedia", "news")
    assert set(evidence.sets(ACCURACY)) == {"piqa", "sciq"}


def test_runs_of_another_allocation_or_with_options_are_left_out(make):
    results = make()
    odd = {"wanda-50-legal": {"allocation": "owl"}, "wanda-50-news": {"options": [["act_order", True]]}}
    kept = set(Sources(replace(results, configs=results.configs | odd), "c4").runs["run_id"])
    assert "wanda-50-pubmed" in kept
    assert not kept & set(odd)


def test_a_level_is_the_log_ratio_to_the_dense_model(make):
    results = make()
    found = Sources(results, "c4").level("sparsegpt-50-legal", PERPLEXITY, ("legal", "news"))
    shift = [
        np.mean(results.items["sparsegpt-50-legal"][t]["nll"]) - np.mean(results.items["dense"][t]["nll"])
        for t in ("legal", "news")
    ]
    assert found[0] == pytest.approx(np.mean(shift))
    assert found.shape == (1 + DRAWS,)


def test_a_difference_holds_the_noise_of_both_draws(make):
    evidence = Sources(make(draw=0.05), "c4")
    group = ("sparsegpt", "50%")
    noise = evidence.noise(group, PERPLEXITY)
    assert (noise.freedom, noise.group) == (4, group)
    assert noise.sd == pytest.approx(0.05, rel=0.1)
    one = evidence.gap(["sparsegpt-50-legal"], ["sparsegpt-50-news"], PERPLEXITY)
    t_quantile = 2.776  # 97.5 % of Student's t with 4 degrees of freedom
    assert (ends(one).hi - ends(one).lo) / 2 == pytest.approx(t_quantile * noise.sd * math.sqrt(2), rel=0.1)
    mean = evidence.gap(["sparsegpt-50-legal"], evidence.draws(group, "c4"), PERPLEXITY)
    assert (ends(mean).hi - ends(mean).lo) / 2 == pytest.approx(t_quantile * noise.sd * math.sqrt(1 + 1 / 5), rel=0.1)
    few = evidence.gap(["sparsegpt-50-c4-1w"], [], PERPLEXITY)
    assert (ends(few).hi - ends(few).lo) / 2 == pytest.approx(t_quantile * noise.sd * math.sqrt(16 * 64 / 32), rel=0.1)


def test_noise_is_borrowed_from_the_method_then_from_all_and_is_none_without_draws(make):
    evidence = Sources(without(make(draw=0.05), "wanda-50-c4-draw"), "c4")
    assert evidence.noise(("wanda", "50%"), PERPLEXITY).group[0] in ("sparsegpt", "gptq")
    evidence = Sources(without(make(draw=0.05), "-draw"), "c4")
    assert evidence.noise(("wanda", "50%"), PERPLEXITY) is None


def test_an_sd_of_five_has_the_interval_of_the_chi_squared_law(make):
    evidence = Sources(make(draw=0.05), "c4")
    found = ends(evidence.sd_over(evidence.draws(("sparsegpt", "50%"), "c4"), PERPLEXITY))
    # the 2.5 and 97.5 % quantiles of chi-squared with 4 degrees of freedom are 0.484 and 11.143
    assert found.lo == pytest.approx(found.value * math.sqrt(4 / 11.143), rel=0.06)
    assert found.hi == pytest.approx(found.value * math.sqrt(4 / 0.484), rel=0.06)


def test_the_source_ratio_takes_the_draw_out_of_the_sources(make):
    evidence, group = Sources(make(draw=0.02), "c4"), ("sparsegpt", "50%")
    ids = [evidence.base(group, s) for s in evidence.sources(group, text_only=True)]
    over = np.std([evidence.level(i, PERPLEXITY)[0] for i in ids], ddof=1)
    under = np.std([evidence.level(i, PERPLEXITY)[0] for i in evidence.draws(group, "c4")], ddof=1)
    found = evidence.source_to_draw(group, PERPLEXITY)
    assert found[0] == pytest.approx(math.sqrt(over**2 / under**2 - 1))
    # F with (6, 4) degrees of freedom has its 97.5 % point at 9.197
    assert ends(found).lo == pytest.approx(math.sqrt(max(over**2 / under**2 / 9.197 - 1, 0)), rel=0.15, abs=0.1)


def test_the_paired_ratio_of_spreads_covers_the_truth_as_often_as_it_says():
    # Pitman's pivot against a simulation with a known ratio of 2 and a correlation of 0.8
    random, texts, hits = np.random.default_rng(3), 7, 0
    t_quantile = 2.571  # Student's t, 5 degrees of freedom
    for _ in range(600):
        shared, own = random.standard_normal((2, texts)), random.standard_normal(texts)
        a, b = 2 * shared[0], 0.8 * shared[0] + 0.6 * own
        ratio, low, high = _pitman(a, b, t_quantile)
        hits += low < 2 < high
        assert low < ratio < high
    assert 0.92 < hits / 600 < 0.98


def _pitman(a, b, t):
    f, r = a.var() / b.var(), np.corrcoef(a, b)[0, 1]
    k = 1 + 2 * (1 - r * r) * t * t / (len(a) - 2)
    return math.sqrt(f), math.sqrt(f * (k - math.sqrt(k * k - 1))), math.sqrt(f * (k + math.sqrt(k * k - 1)))


def test_the_ratio_of_spreads_has_pitmans_interval(make):
    evidence, pair = Sources(make(), "c4"), (("sparsegpt", "50%"), ("wanda", "50%"))
    values = [
        np.array([evidence.level(evidence.base(g, s), PERPLEXITY)[0] for s in evidence.sources(g, text_only=True)])
        for g in pair
    ]
    found, texts = evidence.spread_ratio(*pair, PERPLEXITY)
    ratio, low, high = _pitman(*values, 2.571)
    assert texts == 7
    assert found[0] == pytest.approx(ratio)
    assert (ends(found).lo, ends(found).hi) == (pytest.approx(low, rel=0.05), pytest.approx(high, rel=0.05))


TIED = {s: 0.0 if s in ("c4", "pubmed", "legal") else 0.2 for s in SHIFTS}  # the own text beats some, not all
CASES = {  # claim: (its name, changes where it holds, where it does not, where nobody can tell)
    "source": ("source-against-draw", {}, {"draw": 0.5}, {"draw": 0.03}),
    "method": (
        "depends-more-than-wanda",
        {"own": 0.0},
        {"own": 0.0, "strength": {"sparsegpt": 0.2, "wanda": 1.0, "gptq": 0.9}},
        {"strength": {"sparsegpt": 0.2, "wanda": 0.2, "gptq": 0.2}},
    ),
    "other method": (
        "depends-more-than-gptq",
        {"own": 0.0},
        {"own": 0.0, "strength": {"sparsegpt": 0.2, "wanda": 1.0, "gptq": 0.9}},
        {"strength": {"sparsegpt": 0.2, "wanda": 0.2, "gptq": 0.2}},
    ),
    "own text": ("self-written-is-as-good", {}, {"shifts": SHIFTS | {"self": 0.3}}, {"draw": 0.03}),
    "windows": ("windows-help-and-saturate", {"draw": 0.001}, {"late": 0.2, "draw": 0.001}, {"draw": 0.05}),
    "windows harm": ("windows-help-and-saturate", {"draw": 0.001}, {"size": -0.3, "draw": 0.001}, {"draw": 0.05}),
    "any text": ("any-text-beats-random", {}, {"random": 0.005, "draw": 0.0005}, {"draw": 0.5}),
    "random": ("random-is-useless", {"magnitude": 0.2}, {"magnitude": 1.5}, {"magnitude": 0.8}),
    "domain": ("own-domain-is-best", {}, {"own": 0.2}, {"draw": 0.5}),
    "domain ties": ("own-domain-is-best", {}, {"own": 0.2}, {"own": 0.0, "shifts": TIED}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("answer", [HOLDS, FAILS, OPEN])
def test_a_verdict_follows_the_rows(make, name, answer):
    claim, *worlds = CASES[name]
    (verdict,) = page_of(make(**worlds[(HOLDS, FAILS, OPEN).index(answer)])).verdicts(claim)
    assert verdict.answer == answer, verdict.effect
    assert "[" in verdict.effect
    assert verdict.evidence.startswith("fig-")


@pytest.mark.parametrize(("gain", "answer"), [(0.15, HOLDS), (-0.15, FAILS), (0.0, FAILS)])
def test_task_data_is_judged_by_paired_answers(make, gain, answer):
    results = make(seen=gain, unseen=-0.15)
    if gain == 0.0:  # differences that cancel exactly: no test rejects, but a gain of a point is excluded
        results = _cancelled(results)
    seen, unseen = page_of(results).verdicts("task-data-is-better")
    assert (seen.answer, unseen.answer) == (answer, FAILS)
    assert "alpaca answers" in seen.effect
    assert "squad answers" in unseen.effect


def _cancelled(results: Results) -> Results:
    items = {i: dict(v) for i, v in results.items.items()}
    for run_id in [i for i in items if i.endswith("-alpaca-a")]:
        general = items[run_id.replace("-alpaca-", "-c4-")]["alpaca answers"]
        shift = np.tile([0.01, -0.01], ANSWERS // 2)
        items[run_id]["alpaca answers"] = general | {"f1": (np.array(general["f1"]) + shift).tolist()}
    return replace(results, items=items)


def test_a_few_noisy_answers_cannot_tell(make):
    results = make(seen=0.15)
    items = {i: dict(v) for i, v in results.items.items()}
    for run_id in items:
        if "alpaca answers" in items[run_id]:
            kept = {k: v[:4] for k, v in items[run_id]["alpaca answers"].items()}
            items[run_id]["alpaca answers"] = kept
    assert page_of(replace(results, items=items)).verdicts("task-data-is-better")[0].answer == OPEN


def test_answers_are_paired_by_item_whatever_their_order(make):
    results = make()
    answers = Written.of(results, "c4")
    turned = {k: v[::-1] for k, v in results.items["wanda-50-alpaca-a"]["squad answers"].items()}
    items = results.items | {"wanda-50-alpaca-a": results.items["wanda-50-alpaca-a"] | {"squad answers": turned}}
    other = Written.of(replace(results, items=items), "c4")
    group = ("wanda", "50%")
    assert set(answers.pairs) == {group, ("sparsegpt", "50%")}
    assert answers.gain("squad answers", "f1", [group]) == other.gain("squad answers", "f1", [group])


PARTS = {  # words in the ids of missing runs
    "all": (),
    "no draws": ("-draw",),
    "no answers": ("-a", "dense-with"),
    "quick": (
        "wanda",
        "gptq",
        "-legal",
        "-news",
        "-wikipedia",
        "-alpaca",
        "-self",
        "w",
        "-long",
        "-a",
        "draw2",
        "draw3",
    ),
    "no sources": ("pubmed", "legal", "news", "wikipedia", "alpaca", "self", "random", "-draw", "magnitude"),
    "no general": ("-c4",),
    "no calibrated run": ("sparsegpt", "wanda", "gptq"),
    "only dense runs with answers": ("gptq", "dense-with"),
}


@pytest.mark.parametrize("part", PARTS)
def test_missing_runs_never_stop_the_chapter(make, part):
    results = without(make(), *PARTS[part]) if part != "quick" else without(make(draws=2), *PARTS[part][:-2])
    page = page_of(results)
    assert len(page.verdicts()) >= 9
    assert all(v.effect and v.evidence for v in page.verdicts())
    assert "**Takeaways**" in str(page.takeaways())
    for name in CHAPTER.figures:
        figure = page.figure(name)
        root = ElementTree.fromstring(figure.svg)
        assert root.find("{http://www.w3.org/2000/svg}title").text == figure.alt
        assert len(figure.alt) > 30
        assert "nan" not in figure.caption
    for name in CHAPTER.tables:
        assert "nan" not in str(page.table(name))


@pytest.mark.parametrize("name", CHAPTER.figures)
def test_a_figure_is_repeatable_and_states_a_number_with_its_interval(make, name):
    first = page_of(make()).figure(name)
    assert first == page_of(make()).figure(name)
    assert "95 %" in first.caption
    assert any(c.isdigit() for c in first.alt)


@pytest.mark.parametrize("name", CHAPTER.tables)
def test_tables_are_whole_and_hold_intervals(make, name):
    lines = [line for line in str(page_of(make()).table(name)).splitlines() if line.startswith("|")]
    assert len(lines) > 4
    assert len({line.count("|") for line in lines}) == 1
    assert all("[" in line for line in lines[2:])


def test_the_matrix_names_the_best_source_of_each_text(make):
    caption = page_of(make()).figure("fig-matrix").caption
    assert "the lowest perplexity on 4 of 4 texts" in caption
    assert "legal: legal" in caption
    assert "on 0 of 4" in page_of(make(own=0.2)).figure("fig-matrix").caption
