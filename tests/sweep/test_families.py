"""Each decoder type is compressed whole, or refused in one sentence; nothing is silent."""

import pytest

from tests.sweep.families import DECODERS, NOT_BUILT, sweep

ALWAYS = (
    "llama",
    "gpt2",
    "mamba2",
    "gemma4_text",
    "zamba2",
    "falcon_h1",
    "bart",
    "git",
    "xmod",
    "bamba",
    "glm_moe_dsa",
)
REFUSED = {"xlnet": "cannot be expressed as a linear layer"}
"""Families that are refused, and words of the sentence."""


def judge(family, folder):
    outcome = sweep(family, folder)
    if family in REFUSED:
        assert outcome.status == "refused", outcome
        assert REFUSED[family] in outcome.reason
    else:
        assert outcome.status == "compressed", outcome
        assert round(outcome.share, 3) >= 0.95
        assert outcome.streamed


@pytest.mark.parametrize("family", ALWAYS)
def test_family(tmp_path, family):
    judge(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(DECODERS) - set(NOT_BUILT) - set(ALWAYS)))
def test_every_family(tmp_path, family):
    judge(family, tmp_path)
