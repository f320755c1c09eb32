"""What a layer's inputs look like on calibration text: sums that add, mix and serve every method."""

from crosscal.calibration.capture import GramCapture
from crosscal.calibration.statistics import InputStats, mix

__all__ = ["GramCapture", "InputStats", "mix"]
