"""From a `RunConfig` to rows: presets, runs, the results store and the statistics of a study."""
