"""`crosscal compress`: prune, quantize or lower the rank of a model, calibrated on your own text, into a new folder."""

import argparse
from typing import TYPE_CHECKING

from crosscal.cli.options import add_model_options, loading
from crosscal.cli.sources import add_text_options
from crosscal.cli.targets import add_target_options

if TYPE_CHECKING:
    from crosscal.cli.plan import Plan
    from crosscal.engine.reports import CompressionReport
    from crosscal.text import TextWindows

HELP = "compress a model, calibrated on texts of your choice, into a folder that transformers loads"
DESCRIPTION = """
Compress the linear layers of a causal language model and write a folder that other tools load. Methods that look at
activations are calibrated on --sources: names of built-in texts, your own .txt and .jsonl files, or data sets of the
hub, each with a weight. The model need not fit into memory: it is read, compressed and written block by block.
"""
EXAMPLES = r"""
# half of the weights to zero, calibrated half on web text and half on your own notes
crosscal compress --model smollm2-135m --method sparsegpt --sparsity 0.5 \
  --sources c4=0.5,my_notes.jsonl=0.5 --output out/half

# 4-bit weights, a scale for every 128 inputs, packed on disk
crosscal compress --model Qwen/Qwen2.5-0.5B --method gptq --bits 4 --group 128 \
  --storage compressed-tensors --output out/4bit

# what would it take? and the same call from a file
crosscal compress --model my-model --method wanda --pattern 2:4 --output out/24 \
  --dry-run --save-config 24.toml
crosscal compress --config 24.toml
"""
INTERRUPTED = "interrupted; no earlier folder was changed, and the same command goes on at the block it had reached"
WORST = 3
"""How many of the layers that lost most are named."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `crosscal compress`."""
    parser.add_argument("--model", required=True, help="a built-in model, a folder, or a hub id")
    parser.add_argument(
        "--method", required=True, help="magnitude, wanda, sparsegpt, dpruner, rtn, gptq, awq, svd, ..."
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the compressed model goes")
    parser.add_argument("--overwrite", action="store_true", help="replace FOLDER if crosscal made it")
    add_target_options(parser)
    group = parser.add_argument_group("calibration text")
    group.add_argument(
        "--sources",
        metavar="SOURCE=WEIGHT,...",
        help="built-in names, .txt or .jsonl files, hub:<data set>, or self; weights sum to 1 "
        "(default: c4 for methods that read text)",
    )
    add_text_options(group)
    group.add_argument("--windows", type=int, default=128, help="windows drawn from each source (%(default)s)")
    group.add_argument("--length", type=int, default=1024, help="tokens of a window (%(default)s)")
    group.add_argument("--seed", type=int, default=0, help="decides which windows are drawn (%(default)s)")
    group = parser.add_argument_group("how")
    group.add_argument(
        "--schedule",
        default="sublayer",
        choices=("sublayer", "block", "parallel"),
        help="whether a layer sees compressed layers before it: all, those of earlier blocks, or none (%(default)s)",
    )
    group.add_argument(
        "--allocation",
        default="uniform",
        choices=("uniform", "owl"),
        help="the same sparsity for all blocks, or less where activations have outliers (%(default)s)",
    )
    group.add_argument("--damp", type=float, default=0.01, help="damping of second-order methods (%(default)s)")
    group.add_argument("--micro-batch", type=int, help="windows that run at a time (default: chosen by size)")
    group.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the method: act_order, block, strength"
    )
    group.add_argument(
        "--storage",
        default="dense",
        choices=("dense", "compressed-tensors"),
        help="plain weights, or quantized ones packed in the compressed-tensors format (%(default)s)",
    )
    add_model_options(parser, "of the written weights (%(default)s: as in the model)")


def run(options: argparse.Namespace) -> dict:
    """Check everything that can be checked, then draw the text, compress and write."""
    from crosscal.cli.plan import make_plan

    plan = make_plan(options)
    return _rehearsed(plan, options) if options.dry_run else _compressed(plan, options)


def _rehearsed(plan: "Plan", options: argparse.Namespace) -> dict:
    from crosscal.cli.plan import estimate

    found = {"dry_run": True, **_asked(plan, options), "output": options.output}
    return found | {"bits_per_weight": plan.bits_per_weight, "estimate": estimate(plan, options)}


def _asked(plan: "Plan", options: argparse.Namespace) -> dict:
    return {
        "model": options.model,
        "method": plan.method.name,
        "target": str(plan.target),
        "sources": plan.shares,
        "windows": options.windows if plan.shares else 0,
        "length": options.length if plan.shares else 0,
    }


def _compressed(plan: "Plan", options: argparse.Namespace) -> dict:
    from crosscal.cli.sources import draw_calibration
    from crosscal.disk import carry_out
    from crosscal.engine.request import Request

    texts = draw_calibration(options, plan.shares)
    request = Request(
        model=options.model,
        output=options.output,
        method=plan.method.name,
        target=plan.target,
        calibration=texts or None,
        weights=plan.shares or None,
        schedule=options.schedule,
        damp=options.damp,
        micro_batch=options.micro_batch,
        device=None if options.device == "auto" else options.device,
        dtype=None if options.dtype == "auto" else options.dtype,
        storage=options.storage,
        made=_made(plan, options, texts),
        overwrite=options.overwrite,
        progress=not options.quiet,
        **loading(options),
        **plan.allocation,
        options=plan.options,
    )
    report = carry_out(request)
    return _asked(plan, options) | _found(plan, options, texts, report)


def _made(plan: "Plan", options: argparse.Namespace, texts: "dict[str, TextWindows]") -> dict:
    """Everything that makes the same model again: what was asked, which text it was, and the versions."""
    from crosscal.results.provenance import versions

    return _asked(plan, options) | {
        "seed": options.seed,
        "schedule": options.schedule,
        "allocation": options.allocation,
        "texts": {source: text.fingerprint for source, text in texts.items()},
        "versions": versions(),
        "config": options.reproducing,
    }


def _found(plan: "Plan", options: argparse.Namespace, texts: dict, report: "CompressionReport") -> dict:
    known = [layer for layer in report.layers if layer.relative_error is not None]
    worst = sorted(known, key=lambda layer: -layer.relative_error)[:WORST]
    return {
        "output": options.output,
        "seconds": round(report.seconds, 2),
        "peak_bytes": report.peak_bytes,
        "layers": len(report.layers),
        "sparsity": report.sparsity,
        "bits_per_weight": plan.bits_per_weight,
        "texts": {source: text.fingerprint for source, text in texts.items()},
        "layer_error": sum(layer.relative_error for layer in known) / len(known) if known else None,
        "worst_layers": [{"name": layer.name, "relative_error": layer.relative_error} for layer in worst],
    }


def show(found: dict) -> str:
    """What was done (or would be), in a few lines."""
    shares = found["sources"]
    sources = " + ".join(f"{share:g} {source}" if len(shares) > 1 else source for source, share in shares.items())
    text = f"calibrated on {sources}, {found['windows']} windows of {found['length']} tokens" if sources else "no text"
    head = f"{found['model']}: {found['method']} to {found['target']}, {text}"
    if found.get("dry_run"):
        lines = [
            f"would compress {head}",
            f"would write    {found['output']}",
            f"would take     {found['estimate']['text']}",
        ]
        return "\n".join([*lines, "nothing was done: this was a dry run"])
    lines = [f"compressed {head}", f"written to {found['output']}"]
    lines += [f"  {found['seconds']:.1f} s, {found['peak_bytes'] / 2**20:,.0f} MiB of memory at most above the start"]
    lines += [
        f"  {100 * found['sparsity']:.1f} % of the weights of {found['layers']} layers are zero; packed, a weight "
        f"takes {found['bits_per_weight']:.2f} bits"
    ]
    if found["worst_layers"]:
        worst = ", ".join(f"{layer['name']} {100 * layer['relative_error']:.2g} %" for layer in found["worst_layers"])
        lines += [f"  output error of the layers: mean {100 * found['layer_error']:.2g} %; worst: {worst}"]
    ask = f"--model {found['output']} --dense {found['model']}"
    return "\n".join([*lines, f"what it cost: crosscal evaluate {ask}"])
