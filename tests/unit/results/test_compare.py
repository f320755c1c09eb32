import math

import numpy as np
import pytest

from crosscal.errors import InputError
from crosscal.results.compare import (
    ALL_TASKS,
    ALL_TEXTS,
    dense_means,
    groups_of,
    mean_changes,
    task_changes,
    tasks,
    text_changes,
)
from crosscal.results.frame import read_results


def test_ratios_agree_with_the_rows(results):
    changes = text_changes(results)
    line = changes[(changes["run_id"] == "wanda-50") & (changes["eval_set"] == "pubmed")].iloc[0]
    rows = results.only(metric="perplexity", eval_set="pubmed").set_index("run_id")["value"]
    assert line["ratio"] == pytest.approx(rows["wanda-50"] / rows["dense-0"], rel=1e-3)
    assert line["lo"] <= line["ratio"] <= line["hi"]


def test_all_texts_is_the_geometric_mean(results):
    part = text_changes(results).query("run_id == 'magnitude-60'").set_index("eval_set")["ratio"]
    expected = math.exp(np.log(part.drop(ALL_TEXTS)).mean())
    assert part[ALL_TEXTS] == pytest.approx(expected)


def test_a_task_at_chance_is_shown_and_not_used(results):
    table = tasks(results).set_index("eval_set")
    assert not table.loc["openbookqa", "usable"]
    assert table.drop("openbookqa")["usable"].all()
    changes = task_changes(results).set_index("eval_set")
    assert changes.loc["openbookqa", "p_holm"].isna().all()
    general = mean_changes(results).query("group == 'general'")
    assert (general["tasks"] == 4).all()


def test_means_leave_out_auc(results):
    assert (mean_changes(results).query("group == 'biomedical'")["tasks"] == 1).all()
    assert "pubmedqa_yes_no" in set(task_changes(results)["eval_set"])


def test_task_changes_agree_with_the_rows(results):
    changes = task_changes(results)
    line = changes[(changes["run_id"] == "sparsegpt-70") & (changes["eval_set"] == "sciq")].iloc[0]
    rows = results.only(eval_set="sciq").set_index("run_id")["value"]
    assert line["change"] == pytest.approx(rows["sparsegpt-70"] - rows["dense-0"])


def test_corrected_p_values_are_never_smaller(results):
    usable = task_changes(results).query("usable")
    assert (usable["p_holm"] >= usable["p"] - 1e-12).all()


def test_dense_means_cover_the_groups(results):
    assert list(dense_means(results)) == groups_of(tasks(results)) == ["general", "biomedical", "legal", ALL_TASKS]


def test_runs_of_two_dense_models_are_refused(results, folder):
    with pytest.raises(InputError, match="0 dense runs"):
        _ = read_results(folder, ["wanda-50"]).dense_id


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="there are no runs"):
        read_results(tmp_path)
