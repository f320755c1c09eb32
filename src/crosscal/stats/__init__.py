"""Estimates, intervals and tests on paired outcomes. No torch."""
