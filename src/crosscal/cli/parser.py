"""The parsers of all commands: options, help and worked examples. Showing them loads the standard library only."""

import argparse
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NamedTuple, NoReturn

from crosscal.cli.files import _print_result
from crosscal.errors import suggest
from crosscal.methods.registry import METHODS

_MODEL = "built-in model, folder, .gguf file or hub id"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


_TOLD = tomllib.loads(files("crosscal.cli").joinpath("commands.toml").read_text(encoding="utf-8"))


class _Command(NamedTuple):
    """A command, as `commands.toml` describes it, and its options."""

    module: str
    summary: str
    interrupted: str
    description: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]


class _CommandParser(argparse.ArgumentParser):
    """An `argparse` parser that takes no abbreviations, so that a script keeps its meaning when options are added."""

    def __init__(self, name: str):
        command = _COMMANDS[name]
        super().__init__(
            prog=f"crosscal {name}",
            description=command.description,
            epilog="examples:\n" + textwrap.indent(command.examples, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(self)
        group = self.add_argument_group("every command")
        _add(group, "--json", "print one JSON object instead of text", False)
        _add(group, "--quiet", "no progress bars and no notes; only errors and the result", False)
        _add(group, "--config", "read options from a TOML file, or from a folder written by compress", metavar="FILE")
        _add(group, "--save-config", "write the options to a TOML file, for --config", metavar="FILE")
        _add(group, "--dry-run", "check the options and print what would be done, without doing it", False)

    def check_known(self, arguments: Sequence[str]) -> None:
        """Exit with status 2 for an unknown option, naming the one that may have been meant."""
        known = list(self._option_string_actions)
        for argument in arguments:
            option = argument.partition("=")[0]
            if option == "--":
                return
            if option.startswith("--") and option not in known:
                self.error(f"there is no option {option}{suggest(option, known).removesuffix('?')}")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one sentence."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def print_help(self, file=None) -> None:
        """Print the help on standard output, whatever characters that can take."""
        _print_result(self.format_help().rstrip())


def _add(group, name: str, text: str, default: object = None, **more) -> None:
    """Add an option: a flag where the default is False, else of the default's type."""
    if default is False:
        more["action"] = "store_true"
    elif default is not None:
        more["type"] = type(default)
        text += " (default: %(default)s)" if default != "" else ""
    group.add_argument(name, default=default, help=text, **more)


def _add_target(parser) -> None:
    group = parser.add_argument_group("target (--sparsity or --pattern together with --bits prunes and quantizes)")
    _add(group, "--sparsity", "fraction of the weights to set to zero: 0.5 or 50%%", metavar="FRACTION")
    _add(group, "--pattern", "keep N of every M consecutive weights: 2:4, 4:8", metavar="N:M")
    _add(group, "--bits", "bits of a quantized weight, 1 to 16", type=int)
    _add(group, "--group", "consecutive inputs that share a scale, such as 128 (default: a whole row)", type=int)
    _add(group, "--symmetric", "quantize symmetrically around zero, without zero points", False)
    _add(group, "--rank", "low rank: fraction of the parameters to keep, 0.5 or 50%%", metavar="FRACTION")
    _add(group, "--target", 'the whole target as text: 50%%, 2:4, "4 bits g128", "2:4 + 4 bits g128"', metavar="TEXT")


def _add_text(group) -> None:
    _add(group, "--field", "field of your JSON files that holds the text, a.b for nested ones", metavar="NAME")
    _add(group, "--chat", "read your JSON files as chats, formatted with the model's chat template", False)


def _add_parts(group) -> None:
    skip = "names of layers to leave out, repeatable: mlp.down_proj, 0.*, *.experts.*"
    _add(group, "--skip", skip, action="append", metavar="PATTERN")
    _add(group, "--only", "names of layers to compress, and no others; repeatable", action="append", metavar="PATTERN")
    _add(group, "--partial", "allow less than 95%% of the decoder's weights to be compressed", False)


def _add_loading(parser, dtype: str) -> None:
    group = parser.add_argument_group("loading models")
    _add(group, "--device", "auto, cpu, cuda or cuda:N; auto is a GPU if there is one", "auto")
    _add(group, "--dtype", dtype, "auto", choices=_DTYPES)
    _add(group, "--accept-terms", "accept the terms of use of the model", False)
    _add(group, "--trust-remote-code", "run the Python code that comes with the model; read it first", False)


def _add_measuring(parser) -> None:
    group = parser.add_argument_group("texts and tasks")
    texts = "held-out texts: built-in names, .txt or .jsonl files, hub:DATASET"
    _add(group, "--texts", texts, "pubmed,legal,wikipedia,news", metavar="TEXT,...")
    _add_text(group)
    _add(group, "--windows", "token windows of each text", 8)
    _add(group, "--length", "tokens of a window", 512)
    tasks = "tasks by name, files such as my_task.yaml, or all for the eight of the study (default: none)"
    _add(group, "--tasks", tasks, "", metavar="TASK,...")
    _add(group, "--items", "items of each task, at most", 100)
    _add_loading(parser, "dtype of weights and activations; auto is bfloat16 where the device is fast in it")


def _compress(parser) -> None:
    _add(parser, "--model", _MODEL, required=True)
    _add(parser, "--method", ", ".join(METHODS), required=True)
    _add(parser, "--output", "folder for the compressed model", required=True, metavar="FOLDER")
    _add(parser, "--overwrite", "replace FOLDER if crosscal wrote it", False)
    _add_target(parser)
    group = parser.add_argument_group("calibration text")
    sources = "built-in names, .txt or .jsonl files, hub:DATASET, or self; the weights sum to 1"
    _add(group, "--sources", f"{sources} (default: c4 for methods that read text)", metavar="SOURCE=WEIGHT,...")
    _add_text(group)
    _add(group, "--windows", "token windows drawn from each source", 128)
    _add(group, "--length", "tokens of a window", 1024)
    _add(group, "--seed", "random seed of the draw", 0)
    group = parser.add_argument_group("algorithm")
    schedule = "order of calibration and compression: layer by layer (sublayer), block by block, or all in parallel"
    _add(group, "--schedule", schedule, "sublayer", choices=("sublayer", "block", "parallel"))
    allocation = "equal sparsity in all blocks, or less in blocks with activation outliers (owl)"
    _add(group, "--allocation", allocation, "uniform", choices=("uniform", "owl"))
    _add(group, "--damp", "damping of the Hessian in second-order methods", 0.01)
    _add(group, "--micro-batch", "windows in one forward pass (default: by size)", type=int)
    _add_parts(group)
    option = "option of the method, repeatable: act_order=true, block=64"
    _add(group, "--option", option, action="append", metavar="KEY=VALUE")
    storage = "dense weights, or packed quantized weights in the compressed-tensors format"
    _add(group, "--storage", storage, "dense", choices=("dense", "compressed-tensors"))
    _add_loading(parser, "dtype of the written weights; auto is the model's own")


def _evaluate(parser) -> None:
    _add(parser, "--model", f"model to measure: {_MODEL}", required=True)
    _add(parser, "--dense", "dense model to compare with", metavar="MODEL")
    _add(parser, "--output", "write the JSON result to a file", metavar="FILE.json")
    _add(parser, "--overwrite", "replace that file if it exists", False)
    _add(parser, "--card", "add the result to the model card (README.md) of the model's folder", False)
    _add_measuring(parser)


def _compare(parser) -> None:
    _add(parser, "--dense", f"dense model: {_MODEL}", required=True, metavar="MODEL")
    _add(parser, "--models", "compressed models", required=True, nargs="+", metavar="MODEL")
    _add(parser, "--output", "write the JSON result to a file", metavar="FILE.json")
    _add(parser, "--markdown", "write the table as Markdown to a file", metavar="FILE.md")
    _add(parser, "--overwrite", "replace these files if they exist", False)
    _add_measuring(parser)


def _report(parser) -> None:
    _add(parser, "--model", _MODEL, required=True)
    domain = "text of your domain: .txt or .jsonl file, built-in name or hub:DATASET"
    _add(parser, "--domain", domain, required=True, metavar="TEXT")
    _add_text(parser)
    _add(parser, "--output", "HTML file for the report card", required=True, metavar="FILE.html")
    _add(parser, "--overwrite", "replace that file if it exists", False)
    _add(parser, "--general", "general text to mix with", "c4", metavar="TEXT")
    _add(parser, "--method", "wanda, sparsegpt, gptq, awq, ...", "sparsegpt")
    _add(parser, "--target", '50%%, 2:4, "4 bits g128" or "low rank 50%%"', "50%")
    _add_parts(parser)
    _add(parser, "--weights", "mixture weights of the domain text to compare", "0,0.5,1", metavar="WEIGHT,...")
    tasks = 'tasks by name, files such as my_task.yaml, "" for none, or all for those of the preset'
    _add(parser, "--tasks", tasks, "all", metavar="TASK,...")
    _add(parser, "--preset", "amount of text and task items: smoke, quick or full", "quick")
    _add(parser, "--seed", "random seed of the calibration windows", 0)
    _add(parser, "--device", "auto, cpu, cuda or cuda:N", "auto")
    _add(parser, "--accept-terms", "accept the terms of use of the model", False)


def _assets(parser) -> None:
    actions = ("list", "fetch", "verify", "clear")
    parser.add_argument("action", nargs="?", default="list", choices=actions, help="what to do (default: list)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="archives by name, as in the list (default: all)")
    _add(parser, "--accept-terms", "accept the terms of use in the list", False)
    _add(parser, "--yes", "let clear remove everything when no name is given", False)


def _doctor(parser) -> None:
    _add(parser, "--model", f"estimate for this model: {_MODEL}")
    _add(parser, "--method", "compression method to estimate for", "sparsegpt")
    _add_target(parser)
    _add(parser, "--sources", "number of calibration texts", 1, metavar="N")
    _add(parser, "--windows", "token windows of each text", 128)
    _add(parser, "--length", "tokens of a window", 1024)
    _add(parser, "--schedule", "sublayer, block or parallel", "sublayer")
    _add_loading(parser, "dtype of the model in memory; auto is bfloat16 where the device is fast in it")


_OPTIONS = (_compress, _evaluate, _compare, _report, _assets, _doctor)
_COMMANDS = {name: _Command(**told, add_options=add) for (name, told), add in zip(_TOLD.items(), _OPTIONS, strict=True)}


def _front_page() -> str:
    lines = [f"  {name:<10} {command.summary}" for name, command in _COMMANDS.items()]
    return (
        "usage: crosscal COMMAND [options]\n\n"
        "Compress a language model, calibrated on your own text, and measure the loss.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\ncrosscal COMMAND --help describes a command, with examples;\n"
        "crosscal --version prints the version"
    )
