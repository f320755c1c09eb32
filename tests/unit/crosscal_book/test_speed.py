"""The speed page's tables."""

import json

from crosscal_book.pages.speed import kernel_table, speed_tables

RUN = {"cpu_seconds": 2.0, "seconds": 1.0, "peak_bytes": 2**20}
FACTS = {
    "model": "m",
    "n_windows": 16,
    "length": 1024,
    "device": "a machine",
    "clock": "cpu_seconds",
    "dtype": "bfloat16",
    "versions": "v",
    "commit": "c",
    "finished": "f",
}


def test_ratios_are_taken_pair_by_pair(tmp_path):
    slow = [RUN | {"cpu_seconds": seconds} for seconds in (8.0, 12.0, 10.0)]
    rows = [
        {
            "name": "wanda 50%",
            "options": {"measure_loss": False},
            "ours": [RUN] * 3,
            "textbook": slow,
            "perplexity": 5.0,
        },
        {"name": "gptq", "ours": [RUN], "textbook": []},
    ]
    (tmp_path / "machine.json").write_text(json.dumps(FACTS | {"rows": rows}))
    text = speed_tables(tmp_path)
    assert "**m in bfloat16, 16 windows of 1,024 tokens, on a machine.**" in text
    assert "| wanda 50% (measure_loss False) | 2.0 | 10.0 | 5.00 [4.00, 6.00] | 1 | 1 | 5.00 |  |" in text
    assert "| gptq | 2.0 |  |  | 1 |  |  |  |" in text


def test_without_benchmarks_there_is_no_table(tmp_path):
    assert speed_tables(tmp_path / "none") == ""


def test_the_kernels_of_an_architecture_are_one_line(tmp_path):
    assert kernel_table(tmp_path) == ""
    head = "architecture,pattern,grid,registers,stack,local,shared,occupancy,triton\n"
    (tmp_path / "kernels.csv").write_text(
        f"{head}sm_80,2:4,none,160,0,0,1024,0.1875,3.9\nsm_80,mask,none,170,0,0,2048,0.17,3.9\n"
    )
    assert "| sm_80 | 2 | 160 to 170 | 0 | 2 | 17 to 19 |" in kernel_table(tmp_path)
