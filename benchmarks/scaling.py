"""How the cost of compression grows with the width of a model and with the calibration text: measured in parts.

Two decoder blocks of Llama's shape with random weights, at several widths and numbers of tokens. For each method three
things are timed: the forward passes alone, the solution alone (from sums that are there), and the whole. What is left
of the whole are the sums over the layers' inputs. From the rates the book computes what larger models would take.

    python benchmarks/scaling.py --quick --save xeon     # widths to 1,024: a few minutes on two cores
    python benchmarks/scaling.py --save xeon             # the other points too; those that are stored are not repeated

`--save NAME` keeps every finished point in results/benchmarks/scaling/NAME.json.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from run import TARGETS, timed

from crosscal import compress
from crosscal.engine.gather import gather_statistics
from crosscal.engine.streams import MicroBatch, Streams
from crosscal.files import write_atomically
from crosscal.models import decoder_blocks, inventory, linear_layers
from crosscal.paths import results_dir
from crosscal.results.provenance import provenance

WIDTHS, TOKENS = (256, 512, 1024, 2048), (4096, 16384, 65536)
QUICK_WIDTHS, QUICK_TOKENS = (256, 512, 1024), (4096, 16384)
BLOCKS, LENGTH, VOCABULARY = 2, 1024, 256
RATIO = 11008 / 4096  # of the inner to the outer width of an MLP in Llama-2 7B (Touvron et al. 2023, arXiv 2307.09288)
HEAD = 64
REPEATS, LONG = 3, 5.0  # a piece of work is repeated so often, but no more once it took so many seconds


class _ReachedEndError(Exception):
    """The last layer's inputs are there; what it makes of them nobody needs."""


def shape(width: int) -> dict:
    """The sizes of a model of this width: what the report needs to count its work."""
    return {"hidden": width, "intermediate": round(RATIO * width), "blocks": BLOCKS}


def make_model(width: int, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Blocks of Llama's shape with random weights, [hidden, intermediate] as in `shape`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=shape(width)["intermediate"],
        num_hidden_layers=BLOCKS,
        num_attention_heads=max(1, width // HEAD),
        max_position_embeddings=LENGTH,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def windows_of(tokens: int) -> torch.Tensor:
    """So many arbitrary tokens in windows, [n_windows, length]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (tokens // LENGTH, LENGTH), generator=generator)


@torch.no_grad()
def forward(model: torch.nn.Module, batches: Sequence[MicroBatch]) -> None:
    """The forward passes of a compression: all blocks, but for the very last product, which it leaves out too."""
    blocks = decoder_blocks(model)
    states = [batch.hidden for batch in batches]
    last = linear_layers(blocks[-1])[-1].module

    def stop(*_: object) -> None:
        raise _ReachedEndError

    hook = last.register_forward_pre_hook(stop)
    try:
        for index, block in enumerate(blocks):
            for batch in batches:
                try:
                    batch.hidden = batch.run(index, block)
                except _ReachedEndError:
                    continue
    finally:
        hook.remove()
        for batch, state in zip(batches, states, strict=True):
            batch.hidden = state


def repeated(device: torch.device, prepare: Callable[[], object], work: Callable[[object], object]) -> dict:
    """Median seconds and highest peak of a piece of work, each time on what `prepare` made afresh."""
    found, spent = [], 0.0
    while len(found) < REPEATS and (not found or spent < LONG):
        subject = prepare()
        found.append(timed(device, lambda: work(subject)))  # noqa: B023
        spent += found[-1]["seconds"]
    middle = {clock: median(run[clock] for run in found) for clock in ("seconds", "cpu_seconds")}
    return middle | {"peak_bytes": max(run["peak_bytes"] for run in found), "repeats": len(found)}


def measure(model: torch.nn.Module, width: int, tokens: int, methods: Sequence[str], done: set) -> Iterator[dict]:
    """The points of one width and one number of tokens that are not `done` yet, one after another."""
    device, windows = next(model.parameters()).device, windows_of(tokens)
    head = {"width": width, "tokens": tokens}

    def fresh() -> torch.nn.Module:
        return copy.deepcopy(model)

    if key(head | {"part": "forward", "method": ""}) not in done:
        last = linear_layers(decoder_blocks(model)[-1])[-1].weight.numel()
        seen = sum(layer.weight.numel() for block in decoder_blocks(model) for layer in linear_layers(block)) - last
        batches = Streams(model, inventory(model), {"random": windows}).batches
        found = repeated(device, lambda: None, lambda _: forward(model, batches))
        yield head | {"part": "forward", "method": "", "parameters": seen} | found
    for method in methods:
        options = {"measure_loss": False, "progress": False}
        if key(head | {"part": "whole", "method": method}) not in done:

            def whole(subject: torch.nn.Module) -> None:
                compress(subject, method, TARGETS[method], calibration={"random": windows}, **options)  # noqa: B023

            yield head | {"part": "whole", "method": method} | repeated(device, fresh, whole)
        # The solution does not depend on how many tokens there were: once for each width is enough.
        if tokens == min(TOKENS) and key(head | {"part": "solve", "method": method}) not in done:
            statistics = gather_statistics(model, {"random": windows}, diagonal_only=method == "wanda", progress=False)

            def solve(subject: torch.nn.Module) -> None:
                compress(subject, method, TARGETS[method], statistics=statistics, **options)  # noqa: B023

            yield head | {"part": "solve", "method": method} | repeated(device, fresh, solve)


def key(point: dict) -> tuple:
    """What a point measures."""
    return point["width"], point["tokens"], point["part"], point["method"]


def stored(path: Path | None, facts: dict) -> list[dict]:
    """The points of an earlier, interrupted measurement; stops when it was another machine or another dtype."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    for name in ("device", "dtype", "length"):
        if found[name] != facts[name]:
            raise SystemExit(f"{path} was measured with {name} {found[name]}, not {facts[name]}; give another --save")
    return found["points"]


def main() -> None:
    """Measure what is missing, smallest first, print it line by line, and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", help=f"(default: {' '.join(map(str, WIDTHS))})")
    parser.add_argument("--tokens", type=int, nargs="+", help=f"(default: {' '.join(map(str, TOKENS))})")
    parser.add_argument("--methods", default="wanda,sparsegpt,gptq", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="leave out the widest and the longest")
    parser.add_argument("--save", metavar="NAME", help="keep the points in results/benchmarks/scaling/NAME.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    clock = "seconds" if device.type == "cuda" else "cpu_seconds"  # idle cores do not count
    facts = provenance(device) | {"dtype": options.dtype, "length": LENGTH, "clock": clock}
    path = results_dir("benchmarks") / "scaling" / f"{options.save}.json" if options.save else None
    points = stored(path, facts)
    widths = options.widths or (QUICK_WIDTHS if options.quick else WIDTHS)
    tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS)
    facts["shapes"] = {str(width): shape(width) for width in sorted({*widths, *(p["width"] for p in points)})}
    print(f"{BLOCKS} blocks in {options.dtype}, {facts['device']}; {facts['versions']}\n")
    print("| width | tokens | part | method | s | CPU s | peak MiB |\n|---|---|---|---|---|---|---|", flush=True)
    for width, count in sorted(((w, t) for w in widths for t in tokens), key=lambda wt: wt[0] ** 2 * wt[1]):
        model = make_model(width, device, getattr(torch, options.dtype))
        for point in measure(model, width, count, options.methods.split(","), {key(p) for p in points}):
            cells = [*key(point), f"{point['seconds']:.2f}", f"{point['cpu_seconds']:.2f}"]
            print("| " + " | ".join(map(str, [*cells, f"{point['peak_bytes'] / 2**20:,.0f}"])) + " |", flush=True)
            points.append(point)
            if path:
                write_atomically(path, json.dumps(facts | {"points": points}, indent=1))


if __name__ == "__main__":
    main()
