"""Every command and every piece of Python in the guides is run, in order, on a tiny model in a hub cache.

Only sizes are changed: fewer and shorter windows, fewer items, the smallest preset.
"""

import re
import shlex

import pytest

from crosscal.cli import main
from crosscal.methods.registry import METHODS
from crosscal.paths import cache_dir, checkout
from tests.unit.cli.conftest import write_text
from tests.unit.families import save_tiny
from tests.unit.models.conftest import hub_cache  # noqa: F401  a fixture
from tests.unit.models.fake_hub import fill_cache

LLAMA = "meta-llama/Llama-2-7b-hf"
GUIDES = sorted((checkout() / "book" / "guides").glob("*.md"))
BLOCKS = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("llama-", "python convert_hf", "pip ", "hf ", "export ", "srun ", "python -m crosscal.study", "#")
SMALL = {
    "evaluate": "--windows 2 --length 32 --items 2",
    "compare": "--windows 2 --length 32",
    "gate": "--windows 6 --length 32",
    "report": "--preset smoke",
}


@pytest.fixture
def desk(hub_cache, tmp_path, monkeypatch):  # noqa: F811
    """A working folder with notes, a cache of its own that shares the fetched archives, and a tiny Llama on the hub."""
    assets = cache_dir() / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "assets").symlink_to(assets)
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CROSSCAL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub_cache))  # for the process that executes the report's notebook
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "published", max_shard_size="20KB")
    fill_cache(hub_cache, LLAMA, tmp_path / "published")
    write_text(tmp_path / "my_notes.jsonl", documents=200)
    before = set(METHODS)
    yield tmp_path
    for name in set(METHODS) - before:
        del METHODS[name]


def commands(block: str) -> list[str]:
    """The command lines of a block, continued lines joined."""
    joined = block.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def smaller(line: str) -> list[str]:
    """A command of the guides as arguments, with sizes for a tiny model."""
    line = re.sub(r"--windows \d+", "--windows 2", line)
    line = re.sub(r"--length \d+", "--length 32", line)
    line = line.replace("smollm2-135m", "published")
    line = re.sub(r"torchrun --nproc-per-node \d+ -m ", "", line)  # several processes are for test_torchrun
    name, command, *rest = shlex.split(line)
    assert name == "crosscal", line
    if command in ("compress", "doctor") and "--length" not in rest and "--config" not in rest:
        rest += ["--windows", "2", "--length", "32"]
    return [command, *rest, *shlex.split(SMALL.get(command, ""))]


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_what_a_guide_shows_runs(guide, desk, capsys):
    blocks = BLOCKS.findall(guide.read_text(encoding="utf-8"))
    assert blocks
    names: dict = {}
    for language, block in blocks:
        if language == "python":
            short = block.replace("smollm2-135m", "published").replace("n_windows=16", "n_windows=2, length=32")
            exec(compile(short, guide.name, "exec"), names)
            continue
        for line in commands(block):
            if not line.startswith(ELSEWHERE):
                assert main(smaller(line)) == 0, (line, capsys.readouterr().err[-1000:])


def test_the_guides_are_found():
    assert len(GUIDES) >= 6


@pytest.mark.slow
def test_the_commands_of_the_readme_run(desk, capsys):
    text = (checkout() / "README.md").read_text(encoding="utf-8")
    shown = [line for _, block in BLOCKS.findall(text) for line in commands(block) if line.startswith("crosscal ")]
    assert len(shown) >= 4
    for line in shown:
        assert main(smaller(line)) == 0, (line, capsys.readouterr().err[-1000:])
