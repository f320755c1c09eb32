"""A chapter's parameters: what is unknown or senseless stops before anything runs."""

import pytest

from crosscal.errors import InputError
from crosscal.study.chapter1 import chapter_configs
from crosscal.study.grid import find_stored
from crosscal.study.parameters import Settings, read_parameters
from crosscal.study.presets import PRESETS


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
        read_parameters(given)


def test_what_ipython_and_imports_put_there_is_no_parameter():
    namespace = {"In": [], "_": 1, "pytest": pytest, "read_parameters": read_parameters, "sparsity": 1}
    assert read_parameters(namespace) == Settings(sparsity=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_dense_run_first_and_the_asked_sparsity(preset):
    configs = chapter_configs(Settings(preset=preset, sparsity=0.55))
    assert configs[0].method == "dense"
    assert sum(str(c.pattern) == "55%" for c in configs) == 3
    assert len(set(configs)) == len(configs)


def test_looking_up_a_run_that_is_not_stored_says_so(tmp_path):
    with pytest.raises(InputError, match=r"holds no run of dense 0% .* set compute to 'missing'"):
        find_stored(chapter_configs(Settings()), tmp_path)
