"""Targets and run configs: written form and back, what is refused, and numbers that come from numpy."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscal.errors import InputError
from crosscal.types import Grid, LowRank, NofM, PerGroup, PerRow, SparseGrid, Unstructured, parse_pattern, parse_target

SPARSITIES = st.floats(0, 1).map(Unstructured)
NOFMS = st.integers(1, 10**6).flatmap(lambda m: st.builds(NofM, st.integers(0, m), st.just(m)))
GROUPS = st.just(PerRow()) | st.integers(1, 10**6).map(PerGroup)
GRIDS = st.builds(Grid, st.integers(1, 16), GROUPS) | st.builds(Grid, st.integers(2, 16), GROUPS, st.just(True))
RANKS = st.floats(0, 1, exclude_min=True).map(LowRank)
TARGETS = SPARSITIES | NOFMS | GRIDS | RANKS | st.builds(SparseGrid, SPARSITIES | NOFMS, GRIDS)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(TARGETS)
def test_targets_survive_their_written_form(target):
    text = str(target)
    assert parse_target(text) == target
    assert str(parse_target(text)) == text
    assert parse_target(f"  {text} ") == target


SHORT = {"0.29": "29%", "58%": "58%", "33.3%": "33.3%", ".5": "50%", "1": "100%", "4b": "4 bits per row"}
SHORT |= {"3 bits g 128": "3 bits g128", "2:4+4b g64": "2:4 + 4 bits g64", "low rank 12.5%": "low rank 12.5%"}


@pytest.mark.parametrize(("text", "written"), SHORT.items())
def test_short_forms_are_read(text, written):
    assert str(parse_target(text)) == written


@pytest.mark.parametrize("text", ["", "half", "nan", "2:x", "4 bits g0.5", "50% + half", "+", "bits 4"])
def test_unclear_targets_are_refused(text):
    with pytest.raises(InputError, match="is unclear; write a sparsity"):
        parse_target(text)


@pytest.mark.parametrize(
    "text", ["5:4", "150%", "-0.5", "2:4:8", "2:x", "17 bits", "0 bits", "4 bits g0", "low rank 0%"]
)
def test_impossible_targets_are_refused(text):
    with pytest.raises(InputError):
        parse_target(text)


@pytest.mark.parametrize("text", ["half", "2:x", "2:4:8", "%", "1 2"])
def test_unclear_patterns_are_refused(text):
    with pytest.raises(InputError, match=r"pattern is .*; give a fraction"):
        parse_pattern(text)


@pytest.mark.parametrize("bad", [True, np.True_, "0.5", None, float("nan"), -1, 2])
def test_a_fraction_is_a_number_from_0_to_1(bad):
    for kind in (Unstructured, LowRank):
        with pytest.raises(InputError):
            kind(bad)


@pytest.mark.parametrize("bad", [True, 2.0, "2", None, -1])
def test_counts_are_whole_numbers(bad):
    for make in (lambda: NofM(bad, 4), lambda: NofM(2, bad), lambda: PerGroup(bad), lambda: Grid(bad)):
        with pytest.raises(InputError):
            make()


def test_a_group_that_is_no_group_is_refused():
    with pytest.raises(InputError, match=r"give PerRow\(\) or PerGroup\(128\)"):
        Grid(4, 128)
    with pytest.raises(InputError, match="rounds every weight to 0"):
        Grid(1, symmetric=True)


def test_numbers_of_numpy_are_kept_as_plain_ones():
    made = [
        Unstructured(np.float64(0.5)), NofM(np.int64(2), np.int32(4)), LowRank(np.float32(0.5)),
        Grid(np.int8(4), PerGroup(np.uint16(64)), np.True_),
    ]  # fmt: skip
    plain = [Unstructured(0.5), NofM(2, 4), LowRank(0.5), Grid(4, PerGroup(64), True)]
    assert made == plain
    assert repr(made) == repr(plain)
    assert json.dumps([vars(target) for target in made[:3]])
