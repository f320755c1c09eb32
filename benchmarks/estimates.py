"""How near the estimates of `crosscal doctor` come to what a compression really takes: their ratio, method by method.

python benchmarks/estimates.py                    the embedded model, 4 windows of 512 tokens
python benchmarks/estimates.py --windows 16 --length 1024
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from crosscal import compress, load_model, load_text
from crosscal.machine import estimate
from crosscal.types import parse_target

CASES = (("magnitude", "50%"), ("wanda", "50%"), ("sparsegpt", "50%"), ("rtn", "4 bits g128"), ("gptq", "4 bits g128"))


def main() -> None:
    """Print a table: estimated and real seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    print("method      target         seconds: estimated  real  ratio    MiB: estimated  real  ratio")
    for method, words in CASES:
        loaded, target = load_model(options.model), parse_target(words)
        text = load_text("c4", loaded.tokenizer, n_windows=options.windows, length=options.length)
        sizes = {"n_windows": options.windows, "length": options.length}
        config, dtype = loaded.model.config, next(loaded.model.parameters()).dtype
        found = estimate(config, method, target, **sizes, dtype=dtype, device=str(loaded.device), streamed=False)
        begun = time.perf_counter()
        report = compress(loaded, method, target, calibration={"c4": text}, progress=False)
        if loaded.device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - begun
        times = f"{found.seconds:18.1f} {took:5.1f} {found.seconds / took:6.2f}"
        mib, real = found.work_bytes / 2**20, max(report.peak_bytes, 1) / 2**20
        print(f"{method:11} {words:14} {times} {mib:17.0f} {real:5.0f} {mib / real:6.2f}")


if __name__ == "__main__":
    main()
