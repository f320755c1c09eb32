"""What the tests of streaming share: tiny folders, the in-memory way, and comparing folders file by file."""

import torch

from crosscal.engine.driver import compress
from crosscal.models import load_model
from crosscal.types import Unstructured
from tests.unit.families import random_windows

HALF = Unstructured(0.5)
TEXT = {"a": random_windows(), "b": random_windows(seed=1)}


def in_memory(folder, method, target, *, dtype="float32", **options):
    """The model loaded as a whole and compressed, and its report."""
    loaded = load_model(folder, dtype=dtype)
    return loaded, compress(loaded.model, method, target, progress=False, **options)


def same_weights(folder, model, dtype="float32"):
    """Whether the model read from a folder has the very parameters of another."""
    found = dict(load_model(folder, dtype=dtype).model.named_parameters())
    expected = dict(model.named_parameters())
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def contents(folder):
    """The bytes of every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
