"""A study of a model that does not fit into memory: the same numbers, and a report card within a limit."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crosscal.results.store import load_runs
from crosscal.study import session
from crosscal.types import RunConfig, parse_target
from tests.unit.families import save_tiny, tiny_tokenizer

WORDS = "the court found that cells of the liver divide while markets fall and rain falls"
MIB = 2**20
ALLOWED = 144 * MIB
STARTUP = f"""
import os, resource
from pathlib import Path
import torch
from crosscal.plan.parameters import ReportCardSettings
from crosscal.study.grid import run_chapter
from crosscal_book.chapters import report_card

torch.set_num_threads(1)
given = dict(preset="smoke", domain="notes.jsonl", general="web.jsonl", tasks="", method="wanda", mix_weights="0,1")
results, cache = os.environ["CROSSCAL_RESULTS"], os.environ["CROSSCAL_CACHE"]
os.environ["CROSSCAL_RESULTS"] = "warm"  # imports what it imports
import crosscal.study.session as session
room, session.free_bytes = session.free_bytes, lambda device: 0
run_chapter("report_card", ReportCardSettings(model="small", device="cpu", **given))
session.free_bytes, os.environ["CROSSCAL_RESULTS"] = room, results
line = next(line for line in open("/proc/self/status") if line.startswith("VmData"))
limit = int(line.split()[1]) * 1024 + {ALLOWED}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
Path("limited").touch()
"""


def write_notes(path, seed):
    words = WORDS.split()
    rows = [" ".join(words[(i * k + seed) % len(words)] for k in range(1, 30)) + f" {i * seed}" for i in range(1, 80)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def llama(folder, n_blocks, width):
    """A model with a small vocabulary, stored in bfloat16 and in shards; returns its bytes."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=128, num_hidden_layers=n_blocks, max_position_embeddings=64, **sizes)
    config.update({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20MB")
    tiny_tokenizer().save_pretrained(folder)
    return 2 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells what a process takes")
def test_model_three_times_the_memory_allowed_gets_a_report_card(tmp_path, own_cache):
    """The kernel that makes the card may take 144 MiB more than what it has imported."""
    llama(tmp_path / "small", 2, 32)
    assert llama(tmp_path / "dense", 90, 512) > 3 * ALLOWED
    write_notes(tmp_path / "notes.jsonl", 1)
    write_notes(tmp_path / "web.jsonl", 2)
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "limit.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(STARTUP)
    environment = {
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "CROSSCAL_RESULTS": "results",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    line = ["report", "--model", "dense", "--domain", "notes.jsonl", "--general", "web.jsonl", "--preset", "smoke"]
    line += ["--method", "wanda", "--weights", "0,1", "--tasks", "", "--device", "cpu", "--output", "card.html"]
    done = subprocess.run(
        [sys.executable, "-m", "crosscal", *line],
        env=os.environ | environment | {"HF_DEACTIVATE_ASYNC_LOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "limited").exists()
    assert "Report card: dense" in (tmp_path / "card.html").read_text()
    assert len(load_runs(tmp_path / "results" / "smoke")) == 3
    assert not [path for path in (own_cache / "measured").iterdir() if path.is_dir() and path.name != "items"]


def test_run_on_disk_is_the_run_in_memory(tmp_path, monkeypatch):
    save_tiny(tmp_path / "tiny")
    write_notes(tmp_path / "notes.jsonl", 3)
    text = str(tmp_path / "notes.jsonl")
    runs = []
    for place in ("memory", "disk"):
        monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / place))
        if place == "disk":
            monkeypatch.setattr(session, "free_bytes", lambda device: 0)
        one = session.Session(str(tmp_path / "tiny"), device="cpu", dtype="float32", progress=False)
        pairs = [("dense", "0%"), ("width", "width 50%"), ("sparsegpt", "50%"), ("rtn", "4 bits"), ("magnitude", "50%")]
        for method, target in pairs:  # a width leaves the model as it was for those after it
            shares = ((text, 1.0),) if method in ("sparsegpt", "width") else ()
            monkeypatch.setattr(session, "LOSS_SOURCE", text)
            sizes = {"n_windows": 3, "window": 24, "eval_windows": 3, "eval_window": 20, "task_items": 1, "seed": 0}
            where = {"device": "cpu", "dtype": "float32", "texts": (text,), "tasks": ()}
            options = (("skip", ("mlp.down_proj",)),) if method == "magnitude" else ()
            config = RunConfig(one.name, method, parse_target(target), shares, **sizes, **where, options=options)
            runs.append(one.record(config))
        assert isinstance(one.loaded, session.StreamedModel) == (place == "disk")
    assert not [layer for layer in runs[4].layers if "down_proj" in layer["name"]]
    assert {row.storage_bits for row in runs[1].rows} == {16.0}  # half of the channels in float32
    for inside, outside in zip(runs[:5], runs[5:], strict=True):
        assert (inside.run_id, inside.layers, inside.items) == (outside.run_id, outside.layers, outside.items)
        assert [(row.metric, row.value) for row in inside.rows] == [(row.metric, row.value) for row in outside.rows]
