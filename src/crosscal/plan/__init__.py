"""Which runs a chapter needs: configurations, presets and grids. No torch."""
