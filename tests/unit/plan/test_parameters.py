"""A chapter's parameters: what is unknown or senseless stops before anything runs."""

import json

import pytest

from crosscal.errors import InputError
from crosscal.plan.chapters import CHAPTERS, PRUNING, Maker
from crosscal.plan.parameters import (
    PRESETS,
    CalibrationSettings,
    CrossSettings,
    PruningSettings,
    ReportCardSettings,
    Settings,
    read_parameters,
)
from crosscal.study.grid import find_stored


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sparsty": 0.5}, "unknown parameter 'sparsty'; did you mean 'sparsity'"),
        ({"sparsity": 1.5}, "sparsity is 1.5; give a number from 0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"sparsity": "half"}, "sparsity is 'half'; give a float"),
        ({"preset": "qiuck"}, "did you mean 'quick'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True; give a int"),
        ({"calibration": "c4=0.5"}, "do not sum to 1"),
        ({"calibration": "c4=0.5,pubmed"}, "part 'pubmed' is unclear"),
        ({"calibration": ""}, "do not sum to 1"),
        ({"compute": "always"}, "compute is 'always'"),
    ],
)
def test_what_makes_no_sense_gets_a_sentence(given, sentence):
    with pytest.raises(InputError, match=sentence):
        read_parameters(given, PruningSettings)


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (CalibrationSettings, {"calibration": "c4=0.5,pubmed=0.5"}, "give one text source"),
        (CrossSettings, {"domains": "c4,legal"}, "give different sources, none of them c4"),
        (CrossSettings, {"domains": ""}, "domains is ''"),
        (CrossSettings, {"general": " "}, "general is ' '"),
        (ReportCardSettings, {"target": "fifty"}, "target 'fifty' is unclear"),
        (ReportCardSettings, {"mix_weights": "0,2"}, "numbers from 0 to 1"),
        (ReportCardSettings, {"mix_weights": ""}, "mix_weights is empty"),
        (ReportCardSettings, {"domain": "c4"}, "both 'c4'"),
        (Settings, {"sparsity": 0.5}, "unknown parameter 'sparsity'"),
    ],
)
def test_each_chapter_checks_its_own_parameters(kind, given, sentence):
    with pytest.raises(InputError, match=sentence):
        read_parameters(given, kind)


def test_a_report_card_is_read_on_its_domain_and_asks_what_is_asked():
    changes = ReportCardSettings(domain="notes.jsonl", tasks="sciq").changes(("news", "task_prompts"), ("piqa",))
    assert changes == {"texts": ("news", "task_prompts", "notes.jsonl"), "tasks": ("sciq",)}
    assert ReportCardSettings(tasks="").changes(("news", "task_prompts"), ("piqa",))["texts"] == ("news", "pubmed")
    own = ReportCardSettings(tasks="mine.yaml,boolq").changes(("news", "task_prompts"), ("piqa",))
    assert own == {"texts": ("news", "pubmed"), "tasks": ("mine.yaml", "boolq")}


def test_what_ipython_and_imports_put_there_is_no_parameter():
    namespace = {"In": [], "_": 1, "pytest": pytest, "read_parameters": read_parameters, "sparsity": 1}
    assert read_parameters(namespace, PruningSettings) == PruningSettings(sparsity=1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_has_the_dense_run_first_and_no_run_twice(name, preset):
    configs = CHAPTERS[name].configs(Maker(CHAPTERS[name].settings(preset=preset)))
    assert configs[0].method == "dense"
    assert len(configs) > 1
    assert len(set(configs)) == len(configs)
    assert len({json.dumps(c.to_json()) for c in configs}) == len(configs)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_asked_sparsity_is_in_the_first_chapter(preset):
    configs = CHAPTERS["perplexity"].configs(Maker(PruningSettings(preset=preset, sparsity=0.55)))
    methods = [c.method for c in configs if str(c.target) == "55%"]
    assert sorted(methods) == sorted([*PRUNING, *(["dpruner"] if preset == "full" else [])])


def test_the_second_model_runs_only_when_its_terms_are_accepted():
    plans = [
        CHAPTERS["cross_calibration"].configs(Maker(CrossSettings(preset="full", accept_terms=a)))
        for a in (False, True)
    ]
    assert {c.model for c in plans[0]} < {c.model for c in plans[1]} == {"smollm2-135m", "gemma3-270m"}
    stored = CHAPTERS["cross_calibration"].configs(Maker(CrossSettings(preset="full", compute="never")))
    assert stored == plans[1], "stored rows have no terms"


def test_looking_up_a_run_that_is_not_stored_says_so(tmp_path):
    with pytest.raises(InputError, match=r"holds no run of dense 0% .* set compute to 'missing'"):
        find_stored(CHAPTERS["perplexity"].configs(Maker(PruningSettings())), tmp_path)


def test_numbers_given_for_a_text_are_what_was_written():
    """papermill's -p turns 0.5 into a number, and this project's runner 0,0.5,1 into several."""
    assert read_parameters({"mix_weights": (0, 0.5, 1)}, ReportCardSettings).weights == [0, 0.5, 1]
    assert read_parameters({"mix_weights": 0.5}, ReportCardSettings).weights == [0.5]


@pytest.mark.parametrize("name", ["model", "target", "domain", "tasks"])
@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((124, "2:4"), (7, "007"), (202401, "2024_01"), (511, "0777"), (1.1, "1.10"), (1e5, "1e5"), (2e-5, "2e-5")),
        *((float("inf"), "inf"), (None, "None"), (False, "no"), (True, "on")),
    ],
)
def test_value_in_place_of_a_text_is_refused_by_what_was_written(name, value, written):
    with pytest.raises(InputError, match=rf"^{name} is .*\b{written}\b.*-r {name} "):
        read_parameters({name: value}, ReportCardSettings)


def test_lists_and_exponents_of_yaml_are_read():
    assert read_parameters({"tasks": ["sciq", "piqa"]}, ReportCardSettings).tasks == "sciq,piqa"
    assert read_parameters({"sparsity": "5e-1"}, PruningSettings).sparsity == 0.5


def test_seed_beyond_64_bits_is_refused():
    with pytest.raises(InputError, match=r"seed is 1\d+; give a whole number from 0 to"):
        Settings(seed=10**19)


@pytest.mark.parametrize("other", ["./a.jsonl", "copy.jsonl"])
def test_one_text_under_two_names_is_refused(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "copy.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(InputError, match="two different texts"):
        ReportCardSettings(general=other, domain="a.jsonl")
    with pytest.raises(InputError, match="different sources"):
        CrossSettings(domains=f"a.jsonl,{other}")
    assert ReportCardSettings(general="b.jsonl", domain="a.jsonl")


CELL = 'preset: str = "smoke"  # size\nsparsity: float = 0.5'


def in_ipython(*cells):
    """The settings that a notebook of these cells reads in its last one."""
    shell = {"In": [""]}
    for cell in cells:
        shell["In"].append(cell)
        exec(cell, shell)
    return read_parameters(shell, PruningSettings)


def test_setup_cell_may_run_again():
    results = ["settings = 3", "runs: list = []", "MY_COLOUR = 'red'", "d = {}\nd['preset'] = 1", "%broken"]
    assert in_ipython("MY_COLOUR = 'red'", CELL, *results[:4]).preset == "smoke"
    assert in_ipython(CELL, "x = 1", "sparsity = 0.6").sparsity == 0.6
    assert in_ipython(CELL, "x = 1", CELL.replace("0.5", "0.7")).sparsity == 0.7


def test_papermills_cell_is_read_and_its_paths_are_no_parameters():
    assert in_ipython(CELL, "# Parameters\nsparsity = 0.6\nPAPERMILL_INPUT_PATH = 'a'").sparsity == 0.6
    with pytest.raises(InputError, match="unknown parameter 'sparsty'; did you mean 'sparsity'"):
        in_ipython(CELL, "# Parameters\nsparsty = 0.6")
    with pytest.raises(InputError, match="unknown parameter 'sparsty'"):
        in_ipython(CELL.replace("sparsity", "sparsty"))


def test_script_declares_by_annotations():
    assert read_parameters({"__annotations__": {"seed": int}, "seed": 2, "other": 3}).seed == 2
