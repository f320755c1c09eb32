"""Models larger than memory: weights read, compressed and written block by block, and continued after a kill."""

from crosscal.disk.folder import compress_folder

__all__ = ["compress_folder"]
