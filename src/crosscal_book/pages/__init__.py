"""Notebooks executed, pages generated, freshness checked."""
