"""Estimators that chapters keep for themselves: which runs they compare, and rows and frames of numbers. No words."""
