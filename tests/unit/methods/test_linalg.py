"""The factor of the inverse Hessian."""

import torch

from crosscal.calibration import InputStats
from crosscal.methods.linalg import _inverse_factor


def test_factor_gives_the_inverse():
    inputs = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    stats = InputStats(inputs.T @ inputs, 300)
    upper = _inverse_factor(stats, damp=0.01).upper.double()
    hessian = stats.gram.double() + 0.01 * stats.gram.double().diagonal().mean() * torch.eye(40)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(hessian), rtol=1e-4, atol=1e-7)


def test_damping_rises_until_it_is_enough():
    negative = InputStats(torch.diag(torch.tensor([1.0, 1.0, -0.05])), 1)
    factor = _inverse_factor(negative, damp=0.01)
    assert factor.damp == 0.1
