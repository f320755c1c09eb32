"""Estimators that chapters keep for themselves: which runs they compare; rows, frames and lines of numbers."""
