"""Peak memory of a piece of work."""

import time

import pytest
import torch

from crosscal.engine.reports import PeakMemory, _resident_bytes


@pytest.mark.skipif(_resident_bytes() == 0, reason="this system does not tell a process's resident memory")
def test_an_allocation_is_seen_and_its_release_is_not_held_against_it():
    with PeakMemory(torch.device("cpu")) as first:
        held = torch.ones(50_000_000)
        time.sleep(0.2)
        del held
    with PeakMemory(torch.device("cpu")) as second:
        time.sleep(0.2)
    assert 150e6 < first.peak_bytes < 400e6
    assert second.peak_bytes < 100e6
