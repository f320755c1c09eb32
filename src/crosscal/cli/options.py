"""Options that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser, dtype_help: str) -> None:
    """Where and how models are loaded."""
    group = parser.add_argument_group("loading models")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s: a GPU if there is one)"
    )
    group.add_argument("--dtype", default="auto", choices=DTYPES, help=dtype_help)
    group.add_argument("--accept-terms", action="store_true", help="accept the terms of use that a model comes under")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run the code that a model brings along; read it first"
    )


def loading(options: argparse.Namespace) -> dict[str, bool]:
    """What was permitted, as the loading functions take it."""
    return {"accept_terms": options.accept_terms, "trust_remote_code": options.trust_remote_code}


def config_of(name: str, options: argparse.Namespace) -> "PreTrainedConfig":
    """A model's config, read without its weights; raises `InputError` when there is no such model."""
    from crosscal.models.loading import find_config, is_gguf

    if not is_gguf(name):
        return find_config(name, **loading(options))
    from transformers import AutoConfig

    path = Path(name).expanduser()
    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def names_in(text: str) -> list[str]:
    """The parts of a list with commas, each once.

    >>> names_in("sciq, arc_easy,sciq")
    ['sciq', 'arc_easy']
    """
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured."""
    from crosscal.cli.sources import add_text_options

    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--texts",
        default="pubmed,legal,wikipedia,news",
        metavar="TEXT,...",
        help="held-out texts: built-in names, .txt or .jsonl files, hub:<data set> (%(default)s)",
    )
    add_text_options(group)
    group.add_argument("--windows", type=int, default=8, help="windows of each text (%(default)s)")
    group.add_argument("--length", type=int, default=512, help="tokens of a window (%(default)s)")
    group.add_argument(
        "--tasks",
        default="",
        metavar="TASK,...",
        help="tasks by name, harness files such as my_task.yaml, or 'all' for eight built-in ones (default: none)",
    )
    group.add_argument("--items", type=int, default=100, help="at most so many items of each task (%(default)s)")
