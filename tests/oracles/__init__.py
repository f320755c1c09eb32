"""Slow textbook versions in float64, written from the papers' formulas; every fast solver is tested against one."""
