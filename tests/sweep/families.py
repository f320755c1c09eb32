"""Every decoder type that transformers can build, tiny and random, compressed in memory and streamed.

`python -m tests.sweep.families table.json [FAMILY...]` writes the outcomes, as JSON or, for a name that ends in .md, as
the page "Families" of the book.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from crosscal import compress, load_model
from crosscal.disk import compress_folder
from crosscal.errors import InputError
from crosscal.models import inventory
from crosscal.types import Unstructured
from tests.unit.families import random_windows, tiny_config, tiny_model, tiny_tokenizer

DECODERS = sorted({kind.model_type for kind in MODEL_FOR_CAUSAL_LM_MAPPING} & set(CONFIG_MAPPING))
METHODS = ("magnitude", "wanda", "sparsegpt")
UNCOUNTED = ("embedding", "head", "cross-attention", "outside the text decoder")
NOT_BUILT = {
    "dots3_note": "its vision tower does not take these sizes",
    "gemma3n": "its vision tower needs the package timm; its text decoder is gemma3n_text",
    "gemma4_assistant": "it drafts for another model and reads that one's hidden states",
    "gemma4_unified_assistant": "it drafts for another model and reads that one's hidden states",
    "musicgen": "it reads codes of sound, not text",
    "musicgen_melody": "it reads codes of sound, not text",
    "qwen4_exp": "its vision tower does not take these sizes; its text decoder is qwen4_exp_text",
}
"""Decoder types that are not tried, and why."""


@dataclass
class Outcome:
    """What became of one family: `share` of the decoder's weights compressed, or the `reason` why not."""

    family: str
    status: str  # "compressed", "refused", "not built", "failed"
    share: float = 0.0
    blocks: int = 0
    matrices: int = 0
    experts: bool = False
    streamed: bool = False
    reason: str = ""


def zero_share(model, uncounted: set[str]) -> float:
    """The share of zeros in all matrices of the blocks, as a reader of the written model would count it."""
    total = zeros = 0
    paths = tuple(f"{path}." for path in inventory(model).paths)
    for name, parameter in model.named_parameters():
        vector = sum(size > 1 for size in parameter.shape) < 2 or "bias" in name.rpartition(".")[2]
        if name.startswith(paths) and not vector and name.removesuffix(".weight") not in uncounted:
            total, zeros = total + parameter.numel(), zeros + int((parameter == 0).sum())
    return zeros / max(1, total)


def sweep(family: str, folder: Path) -> Outcome:
    """Compress one family by every method, in memory and streamed, and judge the written models."""
    if family in NOT_BUILT:
        return Outcome(family, "not built", reason=NOT_BUILT[family])
    model = tiny_model(family)
    for parameter in model.parameters():  # gates that begin as zeros
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    made = inventory(model)
    outcome = Outcome(family, "compressed", made.share, len(made.blocks), sum(map(len, made.layers)))
    outcome.experts = any(layer.expert is not None for layers in made.layers for layer in layers)
    uncounted = {part.name for part in made.left_out if part.reason in UNCOUNTED}
    model.save_pretrained(folder / "dense")
    tiny_config(family).save_pretrained(folder / "dense")  # of a wrapper, of which the model keeps the text's alone
    tiny_tokenizer().save_pretrained(folder / "dense")
    text = {"general": random_windows(4, 32), "domain": random_windows(4, 32, seed=1)}
    outcome.streamed = True
    try:
        for method in METHODS:
            calibration = {} if method == "magnitude" else {"calibration": text}
            mine = load_model(folder / "dense", dtype="float32").model
            compress(mine, method, Unstructured(0.5), progress=False, **calibration)
            options = {"dtype": "float32", "progress": False, "overwrite": True} | calibration
            compress_folder(folder / "dense", folder / "out", method, Unstructured(0.5), **options)
            theirs = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)
            zeros = zero_share(theirs, uncounted)
            ours, read = mine.state_dict(), theirs.state_dict()
            outcome.streamed &= ours.keys() == read.keys() and all(torch.equal(ours[key], read[key]) for key in ours)
            if not 0.475 < zeros < 0.515:  # SparseGPT's threshold takes one weight more in each block
                outcome.status, outcome.reason = "failed", f"{method}: {100 * zeros:.1f} % are zero"
    except InputError as error:
        outcome.status, outcome.reason = "refused", str(error)
    except Exception as error:
        outcome.status, outcome.reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
    return outcome


PAGE = """# Families

Every decoder type that transformers {version} can build was made tiny and random, and compressed to half of its weights
by {methods}, in memory and streamed. **{done} of {tried}** are compressed, which means that at least 95 % of the
weights in their blocks' matrices are, counted in the written model, and that both ways write the same weights, bit for
bit; {mixtures} of them have experts. Routers, and what cannot be expressed as a linear layer, stay dense. The others
are refused with one sentence.

"""


def markdown(outcomes: list[Outcome]) -> str:
    """The page of the book: counts, and the outcomes as a table."""
    tried = [one for one in outcomes if one.status != "not built"]
    done = [one for one in tried if one.status == "compressed" and round(one.share, 3) >= 0.95 and one.streamed]
    numbers = {"done": len(done), "tried": len(tried), "mixtures": sum(one.experts for one in done)}
    lines = ["| family | blocks | matrices | compressed | remark |", "| :-- | --: | --: | --: | :-- |"]
    for one in outcomes:
        share = f"{100 * one.share:.1f} %" if one.status == "compressed" else one.status
        remark = one.reason or ("experts" if one.experts else "")
        lines.append(f"| {one.family} | {one.blocks or ''} | {one.matrices or ''} | {share} | {remark} |")
    head = PAGE.format(version=transformers.__version__, methods=", ".join(METHODS), **numbers)
    return head + "\n".join([*lines, ""])


def main(output: str, *families: str) -> None:
    """Sweep over families and write the table after each, so that nothing is lost when one of them ends the process."""
    outcomes = []
    for family in families or DECODERS:
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(sweep(family, Path(folder)))
        text = markdown(outcomes) if output.endswith(".md") else json.dumps(list(map(asdict, outcomes)), indent=1)
        Path(output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
