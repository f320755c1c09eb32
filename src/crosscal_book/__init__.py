"""Figures, tables and pages, from results alone; never imports torch."""
