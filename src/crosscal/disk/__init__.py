"""Models larger than memory: weights read, compressed and written block by block, and continued after a kill."""

from crosscal.disk.folder import carry_out, compress_folder
from crosscal.disk.weights import StreamedModel

__all__ = ["StreamedModel", "carry_out", "compress_folder"]
