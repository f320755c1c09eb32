"""Speed against the textbook, in one run on this machine: `make bench`, or `python benchmarks/run.py --help`.

The package and the textbook take turns; what counts is the ratio of their CPU seconds, medians over repeats. The
windows are the same, and the perplexities beside the times show that both do the same work.
"""

import argparse
import copy
import statistics
import time

import textbook
import torch

from crosscal import compress, load_model, load_text
from crosscal.metrics import perplexity
from crosscal.study.provenance import device_name
from crosscal.types import Unstructured


def timed(device, function, *arguments, **options):
    """CPU seconds and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function(*arguments, **options)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(method, fast, plain, windows, held_out, repeats):
    """One row: medians of both sides, the ratio's median and range, and both perplexities."""
    pattern, ours, theirs = Unstructured(0.5), [], []
    tokens = windows.tokens.to(plain.device)
    for _ in range(repeats):
        mine, textbooks = copy.deepcopy(fast.model), copy.deepcopy(plain.model)
        ours.append(timed(fast.device, compress, mine, method, pattern, calibration={"c4": windows}, progress=False))
        theirs.append(timed(plain.device, textbook.compress, textbooks, method, pattern, tokens))
    ratios = sorted(t[0] / o[0] for o, t in zip(ours, theirs, strict=True))
    mid = [statistics.median(values) for values in zip(*ours, strict=True)]
    mid += [statistics.median(values) for values in zip(*theirs, strict=True)]
    return (
        f"| {method} | {mid[0]:.1f} | {mid[1]:.1f} | {mid[2]:.1f} | {mid[3]:.1f} | "
        f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f}) | "
        f"{perplexity(mine, held_out):.2f} | {perplexity(textbooks, held_out):.2f} |"
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="asset, folder or hub id (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=16, help="calibration windows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=1024, help="tokens a window (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="times each side runs (default: %(default)s)")
    options = parser.parse_args()
    fast, plain = load_model(options.model), load_model(options.model, dtype="float32")
    windows = load_text("c4", fast.tokenizer, n_windows=options.windows, length=options.length)
    held_out = load_text("wikipedia", fast.tokenizer, n_windows=4, length=1024, split="held_out")
    print(f"{options.model}, {options.windows} x {options.length} tokens, 50 %, {device_name(fast.device)}")
    print(f"crosscal in {fast.model.dtype}, the textbook in float32; medians of {options.repeats}\n")
    print("| method | CPU s | wall s | textbook CPU s | wall s | CPU ratio (range) | perplexity | textbook's |")
    print("|---|---|---|---|---|---|---|---|")
    for method in ("wanda", "sparsegpt"):
        print(measure(method, fast, plain, windows, held_out, options.repeats), flush=True)


if __name__ == "__main__":
    main()
