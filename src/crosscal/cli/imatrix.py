"""`crosscal imatrix`: an importance matrix for llama.cpp, mixed from several texts by weight."""

import argparse
from pathlib import Path

from crosscal.cli.compress import _CALIBRATION
from crosscal.cli.files import _check_new, _check_writable, _note
from crosscal.cli.request import _draw_calibration, _permissions, _read_shares
from crosscal.errors import whole_number
from crosscal.models import find_config
from crosscal.output.imatrix import _Names, importance_matrix, write_importance
from crosscal.study.session import Session


def _run_imatrix(options: argparse.Namespace) -> dict:
    """Gather the energy of all inputs on every text, mix and write it."""
    _check_new(options.output, options.overwrite)
    _check_writable(Path(options.output).expanduser())
    whole_number("--windows", options.windows, 1)
    whole_number("--length", options.length, 2)
    config = find_config(options.model, **_permissions(options))
    _Names(config)  # says what is wrong before anything is loaded
    shares = _read_shares(options.sources or _CALIBRATION, options)
    told = {"model": options.model, "output": options.output, "sources": shares}
    told |= {"windows": options.windows, "length": options.length}
    if options.dry_run:
        return told | {"dry_run": True}
    texts = _draw_calibration(options, shares)
    how = {"device": options.device, "dtype": options.dtype, "progress": not options.quiet, **_permissions(options)}
    model = Session(options.model, note=lambda text: _note(options, text), **how).loaded
    matrix, unnamed = importance_matrix(model, config, texts, shares, progress=not options.quiet)
    windows = sum(map(len, texts.values()))
    write_importance(Path(options.output), matrix, shares, (windows, options.length))
    unseen = {name: int((part.counts == 0).sum()) for name, part in matrix.items()}
    told |= {"tensors": len(matrix), "tokens": sum(int((t.tokens >= 0).sum()) for t in texts.values())}
    return told | {"unnamed": unnamed, "experts_without_text": {name: n for name, n in unseen.items() if n}}


def _show_imatrix(result: dict) -> str:
    """Return what was written, and what is not in it."""
    sources = " + ".join(f"{share:g} {source}" for source, share in result["sources"].items())
    text = f"{sources}, {result['windows']} windows of {result['length']} tokens each"
    if result.get("dry_run"):
        return f"would write {result['output']} for {result['model']} from {text}\nnothing was done: this was a dry run"
    lines = [f"written {result['output']}: {result['tensors']} tensors of {result['model']} on {text}"]
    if result["unnamed"]:
        lines += [f"  without a name in GGUF files, so left out: {', '.join(result['unnamed'])}"]
    if few := result["experts_without_text"]:
        lines += [
            f"  {sum(few.values())} experts of {len(few)} tensors saw no text: llama.cpp counts all inputs the same"
        ]
    return "\n".join([*lines, f"next: llama-quantize --imatrix {result['output']} MODEL-f16.gguf OUT.gguf Q3_K_S"])
