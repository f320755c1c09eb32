"""The one loop over a model: windows flow through the blocks, statistics are summed, layers are compressed."""
