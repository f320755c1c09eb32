"""Our reader and writer of safetensors against the library's."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from crosscal.errors import InputError
from crosscal.output import tensorfile
from crosscal.output.tensorfile import TensorFile

TENSORS = {
    "bytes": torch.arange(5, dtype=torch.uint8),
    "half": torch.randn(3, 4, 5).bfloat16(),
    "table": torch.randn(100, 7),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "flag": torch.tensor([True, False]),
}


def test_what_the_library_writes_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt"})
    file = TensorFile.open(tmp_path / "a.safetensors")
    assert file.slots.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        found = file.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert torch.equal(file.rows("table", 30, 40), TENSORS["table"][30:40])
    assert torch.equal(file.rows("half", 2, 9), TENSORS["half"][2:])


def test_what_is_written_in_any_order_the_library_reads(tmp_path):
    contents = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    file = TensorFile.create(tmp_path / "a.safetensors", contents)
    for name in reversed(TENSORS):
        if name != "table":
            file.write(name, TENSORS[name])
    file.write("table", TENSORS["table"][60:], 60)
    file.write("table", TENSORS["table"][:60])
    file.flush()
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_large_tensor_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "PART", 280)  # ten rows of seven numbers
    save_file(TENSORS, tmp_path / "a.safetensors")
    parts = list(TensorFile.open(tmp_path / "a.safetensors").parts("table"))
    assert [first for first, _ in parts] == list(range(0, 100, 10))
    assert torch.equal(torch.cat([part for _, part in parts]), TENSORS["table"])


def test_a_transposed_tensor_is_written_as_it_reads(tmp_path):
    file = TensorFile.create(tmp_path / "a.safetensors", {"t": (torch.float32, (7, 100))})
    file.write("t", TENSORS["table"].T)
    assert torch.equal(file.read("t"), TENSORS["table"].T)


def test_kept_contents_survive_only_in_a_file_of_the_same_kind(tmp_path):
    path = tmp_path / "a.safetensors"
    TensorFile.create(path, {"t": (torch.float32, (2,))}).write("t", torch.ones(2))
    assert TensorFile.create(path, {"t": (torch.float32, (2,))}, keep=True).read("t").tolist() == [1, 1]
    assert TensorFile.create(path, {"u": (torch.float32, (2,))}, keep=True).read("u").tolist() == [0, 0]


def test_a_tensor_of_another_kind_is_not_written(tmp_path):
    file = TensorFile.create(tmp_path / "a.safetensors", {"t": (torch.float32, (2, 3))})
    for wrong in (torch.ones(2, 3).half(), torch.ones(2, 4), torch.ones(6), torch.ones(3, 3)):
        with pytest.raises(ValueError, match=r"t is torch\.float32"):
            file.write("t", wrong)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:4], whole[:40], whole[:-1], b"\xff" * 8 + whole[8:], whole[:8] + b"[]" + whole[10:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or not a safetensors file"):
            TensorFile.open(path)
