"""Chapter 7's verdicts, tables and computed times, on made-up runs and made-up machines."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from crosscal_book.chapters.costs import CHAPTER
from crosscal_book.claims import FAILS, HOLDS, OPEN
from crosscal_book.numbers import ranks
from crosscal_book.numbers.scaling import LLAMA_7B, LLAMA_70B, Scaling, Shape, _work, read_scaling
from tests.unit.crosscal_book.chapters.made_up_grids import Made, study

SPARSEGPT = Made("sparsegpt", "50%", 0.4, noise=0.002, seconds=60.0)
RATES = {"forward": 4e9, "sums": 2e9, "solve": 1e9}


def page_of(folder: Path, runs: list[Made]):
    """The chapter on made-up runs; stored timings lie in `benchmarks` beside them."""
    return CHAPTER.page(study(folder / "runs", runs), folder=folder / "runs")


def schedules(loss: float, name: str = "parallel", noise: float = 0.002) -> list[Made]:
    return [SPARSEGPT, Made("sparsegpt", "50%", loss, noise, schedule=name, seconds=40.0)]


@pytest.mark.parametrize(
    ("runs", "answer"),
    [
        (schedules(0.402), HOLDS),
        (schedules(0.3), HOLDS),
        (schedules(0.45), FAILS),
        (schedules(0.405, noise=0.1), OPEN),
    ],
    ids=["equal", "better", "worse", "noise"],
)
def test_a_cheaper_schedule(tmp_path, runs, answer):
    block, parallel = page_of(tmp_path, runs).verdicts("*-is-as-good")
    assert parallel.answer == answer
    assert "[" in parallel.effect
    assert block.answer == OPEN


@pytest.mark.parametrize(("wanda", "seconds", "answer"), [(0.5, 30.0, HOLDS), (0.3, 30.0, FAILS), (0.3, 55.0, OPEN)])
def test_what_time_buys(tmp_path, wanda, seconds, answer):
    """Wanda is the faster one; where it takes as long, nothing was bought."""
    runs = [SPARSEGPT, Made("wanda", "50%", wanda, 0.002, seconds=seconds), *schedules(0.9)[1:]]
    page = page_of(tmp_path, [*runs, Made("gptq", "3 bits g128", 0.1, seconds=50.0)])
    assert page.verdicts("time-buys-quality")[0].answer == answer
    pairs = page.rows("time-buys-quality")
    assert pairs.empty or set(pairs["name"]) == {"50%: SparseGPT to Wanda"}


def timings(folder: Path, ratios: list[float], divergence: float = 0.01) -> Path:
    ours = [{"cpu_seconds": 2.0, "seconds": 1.0, "peak_bytes": 1} for _ in ratios]
    theirs = [{"cpu_seconds": 2.0 * ratio, "seconds": 0.1, "peak_bytes": 1} for ratio in ratios]
    slow = [{"cpu_seconds": 2.0 * divergence, "seconds": 1.0, "peak_bytes": 1} for _ in ratios]
    rows = [
        {"name": "wanda 50%", "options": {}, "ours": ours, "textbook": theirs},
        {"name": "wanda 50%", "options": {"schedule": "block"}, "ours": ours, "textbook": []},
        {"name": "divergence", "ours": ours, "textbook": slow},
    ]
    facts = {"model": "m", "dtype": "float32", "device": "Some(R) CPU, 2 threads", "clock": "cpu_seconds", "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [([2.0, 2.5, 3.0, 2.0, 2.2, 2.4, 2.1], HOLDS), ([2.0, 3.0], OPEN), ([0.5] * 7, FAILS), ([0.5, 2.0] * 4, OPEN)],
)
def test_against_the_textbook(tmp_path, ratios, answer):
    timings(tmp_path / "benchmarks", ratios)
    page = page_of(tmp_path, [])
    (verdict,), figure = page.verdicts("faster-than-textbook"), page.figure("fig-costs-textbook")
    assert verdict.answer == answer
    assert "[" in verdict.effect
    (row,) = figure.frame.to_dict("records")
    assert (row["lo"], row["value"], row["hi"]) == pytest.approx((min(ratios), np.median(ratios), max(ratios)))
    assert row["name"] == "wanda 50%, m, float32, Some CPU"
    assert str(len(ratios)) in figure.caption


def machine(folder: Path, widths=(256, 512), tokens=(4096, 16384), faster_at_top: float = 1.0, skip=()) -> Scaling:
    """A stored measurement of a machine with constant rates, but for the greatest width."""
    points, blocks = [], 2
    for width in widths:
        shape, speed = Shape("", width, 3 * width, blocks), faster_at_top if width == widths[-1] else 1.0
        for count in tokens:
            parts = {}
            for method in ("wanda", "gptq"):
                for part, rate in RATES.items():
                    parts[part] = blocks * _work(shape, part, method, count) / rate / speed
                head = {"width": width, "tokens": count, "method": method, "repeats": 3, "peak_bytes": 1}
                points.append(head | {"part": "whole", "cpu_seconds": sum(parts.values())})
                if count == tokens[0]:
                    points.append(head | {"part": "solve", "cpu_seconds": parts["solve"]})
            points.append(
                {"width": width, "tokens": count, "part": "forward", "method": "", "repeats": 3, "peak_bytes": 1}
                | {"cpu_seconds": parts["forward"], "parameters": blocks * shape.parameters}
            )
    facts = {"device": "a machine", "dtype": "bfloat16", "versions": "v", "commit": "c", "clock": "cpu_seconds"}
    facts["shapes"] = {str(w): {"hidden": w, "intermediate": 3 * w, "blocks": blocks} for w in widths}
    facts["points"] = [p for p in points if (p["part"], p["method"]) not in skip]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.json").write_text(json.dumps(facts))
    (found,) = read_scaling(folder) or [None]
    return found


def test_rates_are_found_again_from_the_parts(tmp_path):
    scaling = machine(tmp_path)
    for method in ("wanda", "gptq"):
        for part, rate in RATES.items():
            found = scaling.rate(512, part, method)
            assert (found.value, found.lo, found.hi) == pytest.approx((rate, rate, rate), rel=1e-6)
    assert scaling.misses() == pytest.approx([1.0] * 4)
    assert machine(tmp_path / "b", faster_at_top=2.0).misses() == pytest.approx([0.5] * 4)


def test_a_larger_model_takes_its_work_over_the_rates(tmp_path):
    scaling = machine(tmp_path, faster_at_top=2.0)
    found = scaling.predict(LLAMA_7B, "gptq", 1000, 512)
    d, m, blocks = 4096, 11008, 32
    parameters = 4 * d * d + 3 * d * m
    assert found["forward"].value == pytest.approx(blocks * 2 * parameters * 1000 / (2 * RATES["forward"]))
    assert found["sums"].value == pytest.approx(blocks * 1000 * (3 * d**2 + m**2) / (2 * RATES["sums"]))
    sweep = (4 * d * d + 2 * m * d) * (d + 128) + d * m * (m + 128)
    assert found["solve"].value == pytest.approx(blocks * (3 * d**3 + m**3 + sweep) / (2 * RATES["solve"]))
    assert found["total"].value == pytest.approx(sum(found[part].value for part in RATES))


def test_the_shapes_have_the_published_sizes():
    """Weights in linear layers: 6.48 of 6.74 billion, and 68.5 of 69 billion; the rest is embedding, head and norms."""
    for shape, linear in ((LLAMA_7B, 6.476e9), (LLAMA_70B, 68.45e9)):
        assert shape.blocks * shape.parameters == pytest.approx(linear, rel=1e-3)


def test_computed_times_are_marked_as_such(tmp_path):
    machine(tmp_path / "benchmarks" / "scaling")
    text = str(page_of(tmp_path, []).table("larger-models"))
    assert "**Computed, not measured**" in text
    assert "1.00 to 1.00 times what is computed" in text
    assert text.count("70B") == 2
    assert "2 [2, 2]" in str(page_of(tmp_path, []).table("rates"))
    machine(tmp_path / "b" / "benchmarks" / "scaling", widths=(256,))
    assert "one width" in str(page_of(tmp_path / "b", []).table("larger-models"))


def trial(folder, twice_as_slow=1.0):
    """A stored trial in which two ranks take what is computed from one, or more."""
    sizes, points = {"hidden": 512, "intermediate": 1408, "blocks": 2}, []
    one = ranks.llama("trial", 2, 512, 1408, 512)
    loads = [sum(group.cost for group in groups) for groups in ranks.owned(one, 2)]
    two = [twice_as_slow * (10 / 2 + 4 * load / sum(loads)) for load in loads]
    for schedule in ("sublayer", "block"):
        points.append({"ranks": 1, "schedule": schedule, "cpu_seconds": [14.0], "solve_seconds": [4.0]})
        points.append({"ranks": 2, "schedule": schedule, "cpu_seconds": two, "solve_seconds": [2.0, 2.0]})
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(json.dumps({"shape": sizes, "points": points}))


def test_several_gpus_are_computed_and_tried(tmp_path):
    assert "No trial of several ranks is stored" in str(page_of(tmp_path, []).table("many-gpus"))
    trial(tmp_path / "benchmarks" / "ranks", twice_as_slow=2.0)
    text = str(page_of(tmp_path, []).table("many-gpus"))
    assert "**Computed, not measured**" in text
    assert "times 2.0" in text
    assert "took 2.00 to 2.00 times" in text
    assert text.count("\n|") >= 3 * len(ranks.MODELS)


def test_models_for_several_gpus_have_the_published_sizes():
    """Weights in linear layers of blocks, of 8.0, 70.6, 405.9 and 235.1 billion in all."""
    sizes = [model.blocks * model.weights for model in ranks.MODELS]
    assert sizes == pytest.approx([6.979e9, 68.45e9, 401.6e9, 233.6e9], rel=2e-3)


def test_ranks_divide_forward_passes_and_owners_share_solutions():
    fast, model = ranks.Rates(1.0, 1e30, 1e30), ranks.MODELS[0]
    one, eight = (ranks.seconds(model, n, 1000, 2, fast, "sublayer") for n in (1, 8))
    assert eight == pytest.approx(one / 8)
    slow = ranks.Rates(1e30, 1.0, 1e30)
    one, eight = (ranks.seconds(model, n, 1000, 2, slow, "sublayer") for n in (1, 8))
    assert eight == pytest.approx(one)
    assert ranks.seconds(model, 8, 1000, 2, slow, "block") == pytest.approx(
        model.blocks * max(group.solution(2) for group in model.groups)
    )
    assert ranks.received(model, 1, 2) == [0]


def test_an_unfinished_measurement_is_used_as_far_as_it_goes(tmp_path):
    scaling = machine(tmp_path / "benchmarks" / "scaling", skip=[("solve", "gptq")])
    page = page_of(tmp_path, [])
    assert scaling.predict(LLAMA_7B, "gptq", 1000, 512) is None
    assert str(page.table("larger-models")).count("70B") == 1
    assert machine(tmp_path / "b", skip=[("forward", "")]) is None
    assert page.figure("fig-costs-scaling").alt


def test_without_measurements_the_page_says_so(tmp_path):
    assert read_scaling(tmp_path / "none") == []
    page = page_of(tmp_path, [])
    for name in ("larger-models", "rates"):
        assert "No scaling measurement is stored" in str(page.table(name))
    assert "No scaling measurement" in page.figure("fig-costs-scaling").caption
    assert page.verdicts("faster-than-textbook")[0].answer == OPEN


ALL = [
    Made("magnitude", "50%", 2.0, seconds=8.0, wrong=0.3),
    *schedules(0.45, "block"),
    schedules(0.47)[1],
    Made("wanda", "50%", 0.5, seconds=30.0, wrong=0.1),
    Made("rtn", "3 bits g128", 0.6, seconds=9.0),
    Made("gptq", "3 bits g128", 0.3, seconds=55.0),
]


@pytest.mark.parametrize("runs", [ALL, ALL[:1], ALL[-1:], [Made("float32", "0%", 0.0, seconds=0.0)]])
def test_the_page_stands_whatever_runs_there_are(tmp_path, runs):
    timings(tmp_path / "benchmarks", [2.0, 3.0])
    machine(tmp_path / "benchmarks" / "scaling")
    page = page_of(tmp_path, runs)
    for verdict in page.verdicts():
        assert verdict.answer == OPEN or "[" in verdict.effect
        assert verdict.claim in str(page.takeaways())
    for name in CHAPTER.figures:
        figure = page.figure(name)
        assert figure == page.figure(name)
        assert ElementTree.fromstring(figure.svg).get("role") == "img"
        assert len(figure.alt) > 40
    lines = [line for line in str(page.table("runs")).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert all("[" in line for line in lines[2:])


def test_the_table_counts_the_text_that_was_read(tmp_path):
    table = str(page_of(tmp_path, ALL).table("runs"))
    assert "8,192" in table
    assert np.sum(["| none |" in line for line in table.splitlines()]) == 2
    assert "(block)" in table
