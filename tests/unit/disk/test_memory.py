"""A model several times larger than the memory that a process may take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crosscal.machine.facts import free_bytes
from crosscal.metrics import perplexity
from crosscal.models import load_model
from tests.unit.families import tiny_tokenizer

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells what a process takes")
MIB = 2**20
ALLOWED = 96 * MIB
PROGRAM = f"""
import resource, sys
import torch
from transformers.models.llama import modeling_llama
from crosscal.models import head_logits, load_model
from crosscal.disk import StreamedModel, compress_folder
from crosscal.engine.driver import final_states
from crosscal.types import Unstructured

def used():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
    return int(line.split()[1]) * 1024

def perplexity(folder):
    model = StreamedModel(folder, dtype="float32", device="cpu", progress=False)
    states = final_states(model, {{"a": windows}}, progress=False)["a"]
    with model.head() as head, torch.no_grad():
        logits = head_logits(head, states[:, :-1].flatten(0, 1))
    return torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten()).exp().item()

load, small, dense, output = sys.argv[1:]
torch.set_num_threads(1)
windows = torch.randint(3, 100, (4, 32), generator=torch.Generator().manual_seed(0))
call = dict(calibration={{"a": windows}}, measure_loss=False, dtype="float32", device="cpu", progress=False)
compress_folder(small, output + "-first", "wanda", Unstructured(0.5), **call)  # imports what it imports
perplexity(small)
load_model(small, dtype="float32")
limit = used() + {ALLOWED}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if load == "load":
    load_model(dense, dtype="float32")
elif load == "compress":
    compress_folder(dense, output, "wanda", Unstructured(0.5), **call)
else:
    print(perplexity(dense))
print("done")
"""


def llama(folder, n_blocks, width):
    """A model of some depth with a small vocabulary, in shards of 20 MB."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=128, num_hidden_layers=n_blocks, max_position_embeddings=64, **sizes)
    config.update({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="20MB")
    tiny_tokenizer().save_pretrained(folder)
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def limited(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_model_several_times_larger_than_the_memory_allowed(tmp_path):
    llama(tmp_path / "small", 2, 32)
    size = llama(tmp_path / "dense", 30, 512)
    assert size > 3 * ALLOWED
    loaded = limited("load", tmp_path / "small", tmp_path / "dense", tmp_path / "loaded")
    assert loaded.returncode != 0, "the limit does not limit"
    assert "memory" in loaded.stderr.lower() or "alloc" in loaded.stderr.lower(), loaded.stderr
    streamed = limited("compress", tmp_path / "small", tmp_path / "dense", tmp_path / "out")
    assert streamed.stdout == "done\n", streamed.stderr
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 31


def test_the_perplexity_of_a_model_larger_than_the_memory_allowed(tmp_path):
    llama(tmp_path / "small", 2, 32)
    assert llama(tmp_path / "dense", 30, 512) > 3 * ALLOWED
    streamed = limited("evaluate", tmp_path / "small", tmp_path / "dense", tmp_path / "out")
    assert streamed.stdout.endswith("done\n"), streamed.stderr
    windows = torch.randint(3, 100, (4, 32), generator=torch.Generator().manual_seed(0))
    model = load_model(tmp_path / "dense", dtype="float32", device="cpu").model
    assert float(streamed.stdout.split()[0]) == pytest.approx(perplexity(model, windows), rel=1e-6)


def test_free_memory_is_within_the_limit_of_the_process():
    free, before = free_bytes(torch.device("cpu")), resource.getrlimit(resource.RLIMIT_DATA)
    lines = Path("/proc/self/status").read_text().splitlines()
    used = 1024 * int(next(line for line in lines if line.startswith("VmData")).split()[1])
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (used + free // 4, before[1]))
        assert 0 < free_bytes(torch.device("cpu")) <= free // 4 < free
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
