import math

import numpy as np
import pytest

from crosscal.errors import InputError
from crosscal.results.compare import ALL_TASKS, accuracy_tasks, changes, groups_of, tasks
from crosscal.results.frame import read_results
from crosscal.results.quantities import ACCURACY, PERPLEXITY


def of(frame, run_id):
    """The values of one run, by what they are over."""
    return frame[frame["run_id"] == run_id].set_index("over")["value"]


def test_ratios_agree_with_the_rows(results):
    frame = changes(results, PERPLEXITY, "eval_set")
    rows = results.only(metric="perplexity", eval_set="pubmed").set_index("run_id")["value"]
    assert of(frame, "wanda-50")["pubmed"] == pytest.approx(rows["wanda-50"] / rows["dense-0"], rel=1e-3)
    assert ((frame["lo"] <= frame["value"]) & (frame["value"] <= frame["hi"])).all()


def test_all_texts_is_the_geometric_mean(results):
    each = of(changes(results, PERPLEXITY, "eval_set"), "magnitude-60")
    expected = math.exp(np.log(each).mean())
    assert of(changes(results, PERPLEXITY), "magnitude-60")["all"] == pytest.approx(expected)


def test_a_task_at_chance_is_shown_and_not_used(results):
    table = tasks(results).set_index("eval_set")
    assert not table.loc["openbookqa", "usable"]
    assert table.drop("openbookqa")["usable"].all()
    assert "openbookqa" not in set(changes(results, ACCURACY, "eval_set")["over"])
    assert (accuracy_tasks(results)["domain"] == "general").sum() == 4


def test_means_leave_out_auc(results):
    assert "pubmedqa_yes_no" in set(tasks(results)["eval_set"])
    assert (accuracy_tasks(results)["domain"] == "biomedical").sum() == 1


def test_task_changes_agree_with_the_rows(results):
    rows = results.only(eval_set="sciq").set_index("run_id")["value"]
    change = of(changes(results, ACCURACY, "eval_set"), "sparsegpt-70")["sciq"]
    assert change == pytest.approx(rows["sparsegpt-70"] - rows["dense-0"])


def test_groups_are_the_domains_and_all(results):
    assert groups_of(tasks(results)) == ["general", "biomedical", "legal", ALL_TASKS]


def test_runs_of_two_dense_models_are_refused(results, folder):
    with pytest.raises(InputError, match="0 dense runs"):
        _ = read_results(folder, ["wanda-50"]).dense_id


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="there are no runs"):
        read_results(tmp_path)
