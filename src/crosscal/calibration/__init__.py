"""What a layer's inputs look like on calibration text: sums that add, mix and serve every method."""

from crosscal.calibration.statistics import DiagonalStats, InputStats, mix

__all__ = ["DiagonalStats", "InputStats", "mix"]
