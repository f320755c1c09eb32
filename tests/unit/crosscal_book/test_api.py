"""The reference page: it names what the package offers, and what it names can be imported from where it says."""

from importlib import import_module

import pytest

import crosscal
from crosscal import calibration, methods, metrics
from crosscal.errors import InputError
from crosscal_book.pages import api

ENTRIES = [
    (home, file, name)
    for _, *entries in api.PARTS.values()
    for home, file, *names in map(str.split, entries)
    for name in names
]


@pytest.mark.parametrize(("home", "file", "name"), ENTRIES)
def test_every_name_can_be_imported_from_where_the_page_says(home, file, name):
    found = getattr(import_module(home), name)
    assert found.__doc__
    assert import_module(found.__module__).__file__.endswith(file)


def test_the_front_of_the_package_is_on_the_page():
    listed = {name for _, _, name in ENTRIES}
    offered = {*crosscal.__all__, *methods.__all__, *metrics.__all__, *calibration.__all__}
    assert offered - listed == {"InputError", "__version__"}


def test_signatures_show_defaults_and_the_star(monkeypatch):
    text = api.reference()
    assert "    *,\n    device: str | None = None,\n" in text
    assert "rtn(weight: Float[Tensor, 'd_out d_in'], grid: Grid)" in text
    assert "mix(stats: Mapping[str, Stats], weights: Mapping[str, float]) -> Stats" in text
    assert "```pycon\n>>> LowRank(0.5).rank(576, 1536), str(LowRank(0.5))\n(209, 'low rank 50%')\n```" in text
    assert "`.sparsity`\n: Fraction of zeros." in text


def test_a_name_that_is_gone_is_reported(monkeypatch):
    monkeypatch.setattr(api, "PARTS", {"x": ["y", "crosscal.types types.py Nothing"]})
    with pytest.raises(InputError, match=r"types.py defines no 'Nothing'"):
        api.reference()
