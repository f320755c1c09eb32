"""The reference of the Python interface, read from the source: signatures, docstrings, examples. Needs no torch.

Nothing is imported: a page is built on machines that lack most of what the package uses. That the examples run is the
test suite's business, which runs every doctest.
"""

import ast
import re
from pathlib import Path

import crosscal
from crosscal.errors import InputError
from crosscal.methods.registry import METHODS
from crosscal_book.tables import Table

PACKAGE = Path(crosscal.__file__).parent
LONGEST = 100  # characters of a signature on one line


PARTS: dict[str, list[str]] = {
    "Models and texts": [
        "What is compressed, and what it is calibrated and evaluated on.",
        "crosscal models/loading.py load_model",
        "crosscal.models models/loading.py find_folder load_tokenizer",
        "crosscal text/windows.py load_text",
        "crosscal.text text/windows.py TextWindows",
        "crosscal.text text/written.py write_text",
        "crosscal.text text/documents.py documents",
    ],
    "Compressing": [
        "One call for a model in memory, one for a folder that need not fit there, and what they tell.",
        "crosscal engine/driver.py compress",
        "crosscal.disk disk/folder.py compress_folder",
        "crosscal.engine.gather engine/gather.py gather_statistics load_statistics",
        "crosscal.engine.reports engine/reports.py CompressionReport LayerReport",
        "crosscal.output.export output/export.py save_model",
    ],
    "Targets": [
        "What a model can be compressed to; each is checked where it is made.",
        "crosscal.types targets.py Unstructured NofM Grid PerRow PerGroup SparseGrid LowRank Width parse_target "
        "storage_bits",
        "crosscal.methods.allocation methods/allocation.py Owl",
    ],
    "Statistics": [
        "What a method knows of a text: sums that add and mix.",
        "crosscal.calibration calibration/statistics.py InputStats DiagonalStats mix",
    ],
    "Methods": [
        "Pure functions from a weight and the statistics of its inputs to a new weight.",
        *(f"crosscal.methods methods/{name}.py {name}" for name in ("magnitude", "wanda", "sparsegpt", "dpruner")),
        *(f"crosscal.methods methods/{name}.py {name}" for name in ("rtn", "gptq", "awq")),
        "crosscal.methods methods/lowrank.py svd joint_rank fwsvd asvd",
        "crosscal.methods methods/registry.py Method Evidence register_method",
        "crosscal.methods methods/checks.py check_method",
        "crosscal.methods.masks methods/masks.py drop_mask",
    ],
    "Measuring": [
        "Perplexity, divergence from the dense model, tasks and written answers.",
        "crosscal metrics/evaluate.py evaluate",
        "crosscal.metrics.text_scores metrics/text_scores.py dense_reference",
        "crosscal.metrics metrics/text_scores.py perplexity token_nll",
        "crosscal.metrics metrics/divergence.py js_divergence kl_divergence top1_agreement",
        "crosscal.metrics metrics/writing.py score_answers",
    ],
}
"""The sections of the reference: a sentence, then what to import from where, the file that defines it, and names."""

TARGETS = {
    "Unstructured": "sparsity",
    "NofM": "N:M",
    "Grid": "grid",
    "SparseGrid": "either with a grid in one sweep",
    "LowRank": "low rank",
    "Width": "[width](width.md)",
}
READS = {"nothing": "", "diagonal": "input norms", "gram": "Gram matrix"}


def methods_table() -> str:
    """Return one line for each method, from what its `METHOD` says."""
    body = []
    for method in METHODS.values():
        name = f"[`{method.name}`]({method.page}.md)" if method.page else f"`{method.name}`"
        targets = ", ".join(TARGETS[kind.__name__] for kind in method.targets)
        reads = [part for part in (READS[method.reads], "gradients" * method.gradients) if part]
        if method.domain_last:
            reads = [f"{READS[method.reads]} of the general text", "gradients on the domain's"]
        options = ", ".join(f"`{option}` ({default})" for option, default in method.options.items())
        source = f"{{cite:t}}`{method.source}`" if method.source else ""
        linked = ", of layers that share an input together" if method.linked else ""
        body.append([name, targets + linked, ", ".join(reads) or "nothing", options, source])
    return str(Table(["method", "compresses to", "reads", "options (default)", "source"], body, text_columns=5))


def reference() -> str:
    """Return the reference as MyST Markdown; raises `InputError` for a name that its file does not define."""
    lines = []
    for title, (about, *entries) in PARTS.items():
        lines += [f"## {title}", "", about, ""]
        for home, file, *names in map(str.split, entries):
            for name in names:
                lines += [f"(api-{name.lower()})=", f"### `{name}`", "", f"From `{home}`.", "", *_entry(file, name), ""]
    return "\n".join(lines)


def _entry(file: str, name: str) -> list[str]:
    node = _definition(file, name)
    lines = ["```python", *_signature(node), "```", "", *_docstring(ast.get_docstring(node) or "")]
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            about = (ast.get_docstring(method) or "").split("\n\n")[0].split()
            call = "" if any(isinstance(d, ast.Name) and d.id == "property" for d in method.decorator_list) else "()"
            lines += ["", f"`.{method.name}{call}`", f": {' '.join(about)}"] if about else []
    return lines


def _definition(file: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    found = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
    if not found:
        raise InputError(f"{file} defines no '{name}'; correct the list in crosscal_book.pages.api")
    return found[0]


def _signature(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """How it is called, wrapped one argument a line where it is long."""
    if isinstance(node, ast.ClassDef):
        parts = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
        returned = ""
    else:
        parts, returned = _arguments(node.args), f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(parts)}){returned}"
    return [line] if len(line) <= LONGEST else [f"{node.name}(", *(f"    {part}," for part in parts), f"){returned}"]


def _arguments(given: ast.arguments) -> list[str]:
    """Each argument as it is written, with the bare star where keywords begin."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(plain) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    parts = [
        ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")
        for argument, default in zip([*plain, *given.kwonlyargs], defaults, strict=True)
    ]
    star = [f"*{ast.unparse(given.vararg)}"] if given.vararg else ["*"] if given.kwonlyargs else []
    rest = [f"**{ast.unparse(given.kwarg)}"] if given.kwarg else []
    return [*parts[: len(plain)], *star, *parts[len(plain) :], *rest]


def _docstring(text: str) -> list[str]:
    """Prose as it is, examples as code blocks."""
    lines = []
    for block in re.split(r"\n\s*\n", text):
        example = block.lstrip().startswith(">>>")
        lines += ["```pycon", block, "```", ""] if example else [_escaped(block), ""]
    return lines


def _escaped(prose: str) -> str:
    """Docstrings use plain letters for formulas; outside of code, stars and dollars are no markup.

    A label of an equation becomes a link to it.
    """
    parts = prose.split("`")
    parts[::2] = [re.sub(r"(?<!^)(?<!\n)([*$])", r"\\\1", part).replace("[^", r"\[^") for part in parts[::2]]
    parts[::2] = [re.sub(r"\b(eq-[a-z-]*[a-z])", r"{eq}`\1`", part) for part in parts[::2]]
    return "`".join(parts)
