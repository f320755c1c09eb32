"""Old module paths: every one is importable, warns, and is the new module itself."""

import subprocess
import sys
from importlib import import_module

import pytest

from crosscal._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_moved_module_is_the_new_one(old):
    new = import_module(MOVED[old])
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match="has moved to"):
        module = import_module(old)
    assert module is new
    assert module.__spec__.name == MOVED[old]


def test_moved_module_runs_by_its_old_name():
    command = [sys.executable, "-W", "ignore", "-m", "crosscal.report.notebooks", "--help"]
    assert "chapters" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_modules_of_a_moved_package_are_loaded_once():
    with pytest.warns(DeprecationWarning, match="moved"):
        module = import_module("crosscal.streaming.checkpoint")
    assert module is import_module("crosscal.disk.checkpoint")


def test_unknown_modules_are_still_unknown():
    for name in ("crosscal.nowhere", "crosscal.streaming.nowhere"):
        with pytest.raises(ModuleNotFoundError):
            import_module(name)


NAMES = {
    "crosscal.cli.config": "read_config",
    "crosscal.cli.files": "check_new",
    "crosscal.export": "save_model",
    "crosscal.gather": "gather_statistics",
    "crosscal.methods.rtn": "rtn",
    "crosscal.metrics.likelihood": "perplexity",
    "crosscal.metrics.tasks.adapter": "InMemoryLM head_logits",
    "crosscal.metrics.tasks.harness": "load_harness_tasks quiet",
    "crosscal.models": "LoadedModel decoder_blocks",
    "crosscal.packing": "packed_tensors",
    "crosscal.paths": "cache_dir checkout",
    "crosscal.report.notebooks": "executed_copy",
    "crosscal.report.rows": "read_results",
    "crosscal.report.studies.report_card_show": "finish card_table savings_table card_figure",
    "crosscal.streaming.journal": "Journal",
    "crosscal.study.grid": "run_chapter",
    "crosscal.study.parameters": "PruningSettings ReportCardSettings read_parameters",
    "crosscal.study.store": "RunRecord has_run save_run write_atomically",
    "crosscal.text.documents": "NGRAM SHARED_NGRAMS documents word_ngrams",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", NAMES)
def test_names_that_outside_checks_import_are_there(module):
    found = import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []
