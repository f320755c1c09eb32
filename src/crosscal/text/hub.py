"""Text from data sets of the Hugging Face Hub: `hub:<dataset id>[:config][#field]`.

The data sets of the two papers are read file by file, because some of their repositories still carry a loading
script, which the `datasets` library refuses. Files in the hub's own local cache are used first; `HF_HUB_OFFLINE` and
`HF_TOKEN` are honoured by the hub's libraries. Large sets are streamed and read only as far as needed. Importing this
file needs the standard library only.
"""

import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from crosscal.errors import InputError
from crosscal.text.fields import _Document, _instruction_text, _reading_of, _Split
from crosscal.text.own import _CHAT, SourceReport

_MAX_CHARACTERS = 20_000_000  # about 4.5 million tokens: more windows than any study here draws
_MAX_CHARACTERS_LARGE = 60_000_000  # where only documents longer than a window count: some 25,000 web pages
_SAMPLE = 1_000  # rows that decide which field is the text
_CAUSES = 8  # how far back a chain of causes is read

_Row = dict
_Texts = Callable[[Iterable[_Row]], Iterator[str]]


def _articles(rows: Iterable[_Row]) -> Iterator[str]:
    """WikiText has one paragraph a row; a heading of the first level, ` = Title = `, opens an article."""
    article: list[str] = []
    for line in (row["text"] for row in rows):
        if line.startswith(" = ") and not line.startswith(" = =") and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


def _holdings(rows: Iterable[_Row]) -> Iterator[str]:
    """CaseHOLD: the citing text (column 0) with its right holding (columns 1 to 5, number in column 11) put in."""
    return (str(row["0"]).replace("<HOLDING>", str(row[str(1 + int(row["11"]))])) for row in rows)


def _instructions(rows: Iterable[_Row]) -> Iterator[str]:
    return (_instruction_text(row["instruction"], row["input"], row["output"]) for row in rows)


@dataclass(frozen=True)
class _HubFiles:
    """Files of a known data set, by part; an empty `held_out` means that documents are split by a hash of each."""

    role: str
    calibration: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    texts: _Texts = lambda rows: (row["text"] for row in rows)
    large: bool = False  # streamed, not downloaded


_WEB = ("c4", "cc_2019-30", "cc_2020-05", "cc_2021-04", "cc_2022-05", "cc_2023-06")
_C4 = ("en/c4-train.00000-of-01024.json.gz",), ("en/c4-validation.00000-of-00008.json.gz",)
_PARQUET = "train-00000-of-00001.parquet"
_KNOWN: dict[str, _HubFiles] = {
    "allenai/c4": _HubFiles("general", *_C4, large=True),
    "Salesforce/wikitext": _HubFiles(
        "general", (f"wikitext-2-raw-v1/{_PARQUET}",), ("wikitext-2-raw-v1/test-00000-of-00001.parquet",), _articles
    ),
    # Its files are read side by side, a row each in turn, so six of eleven documents are web pages.
    "togethercomputer/RedPajama-Data-1T-Sample": _HubFiles(
        "general",
        tuple(f"{part}_sample.jsonl" for part in ("arxiv", "book", *_WEB, "github", "stackexchange", "wikipedia")),
        large=True,
    ),
    "tatsu-lab/alpaca": _HubFiles(
        "instruction", ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",), texts=_instructions
    ),
    "qiaojin/PubMedQA": _HubFiles(
        "biomedical",
        (f"pqa_artificial/{_PARQUET}",),
        (f"pqa_labeled/{_PARQUET}",),
        lambda rows: ("\n".join(row["context"]["contexts"]) for row in rows),
    ),
    "FiscalNote/billsum": _HubFiles("legal", (f"data/{_PARQUET}",), ("data/test-00000-of-00001.parquet",)),
    "casehold/casehold": _HubFiles("legal", ("data/all/train.csv",), ("data/all/test.csv",), _holdings),
}

HUB_ROLES: dict[str, str] = {name: known.role for name, known in _KNOWN.items()}
"""Data sets of the hub with a known role; any other is "own"."""


def _is_known(source: str) -> bool:
    return source.removeprefix("hub:") in _KNOWN


def _drawn_within(source: str) -> bool:
    """Whether windows of this source are by custom cut inside long documents: the large web sets."""
    known = _KNOWN.get(source.removeprefix("hub:"))
    return source.startswith("hub:") and known is not None and known.large


def _read_hub(source: str) -> tuple[list[_Document], SourceReport]:
    """The documents of a hub source, with the publisher's parts where there are any, and what was read."""
    dataset, config, field = _parse(source)
    known = _KNOWN.get(dataset) if not config and not field else None
    with _explained(source, dataset):
        if known is not None:
            documents = list(_known_documents(dataset, known))
            return documents, SourceReport(source, "as the papers read it", len(documents), len(documents))
        return _any_documents(source, dataset, config, field)


def _parse(source: str) -> tuple[str, str, str]:
    """(dataset id, config, field) of `hub:<id>[:config][#field]`."""
    name, _, field = source.removeprefix("hub:").partition("#")
    dataset, _, config = name.partition(":")
    if not dataset or dataset.count("/") > 1 or dataset != dataset.strip():
        raise InputError(f"'{source}' is no data set of the hub; write hub:<owner>/<name>, such as hub:allenai/c4")
    return dataset, config, field


def _known_documents(dataset: str, known: _HubFiles) -> Iterator[_Document]:
    parts: tuple[tuple[tuple[str, ...], _Split | None], ...] = ((known.calibration, None),)
    if known.held_out:
        parts = ((known.calibration, "calibration"), (known.held_out, "held_out"))
    for files, split in parts:
        streams = [_rows(file) for file in _addresses(dataset, files, known.large)]
        rows = (row for turn in zip_longest(*streams) for row in turn if row is not None)
        limit = _MAX_CHARACTERS_LARGE if known.large and split != "held_out" else _MAX_CHARACTERS
        yield from _up_to((_Document(text, text, split) for text in known.texts(rows)), limit)


def _addresses(dataset: str, files: tuple[str, ...], large: bool) -> list[str]:
    """Where to read the files: in the hub's local cache, downloaded into it, or, if large, streamed from the hub."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    places = []
    for file in files:
        cached = try_to_load_from_cache(dataset, file, repo_type="dataset")
        if not isinstance(cached, str) and large and not constants.is_offline_mode():
            places.append(f"hf://datasets/{dataset}/{file}")
        else:  # brackets in the cache's path are no pattern
            local = cached if isinstance(cached, str) else hf_hub_download(dataset, file, repo_type="dataset")
            places.append(glob.escape(local))
    return places


def _rows(file: str) -> Iterator[_Row]:
    from datasets import load_dataset

    kind = next((kind for kind in ("csv", "parquet") if file.endswith(kind)), "json")
    return iter(load_dataset(kind, data_files=[file], split="train", streaming=True))


def _any_documents(source: str, dataset: str, config: str, field: str) -> tuple[list[_Document], SourceReport]:
    """Any other data set, as the `datasets` library sees it: its parts if it has two, else one to be split."""
    from datasets import load_dataset

    sets = load_dataset(_local_copy(dataset), config or None, streaming=True)
    names = [str(name) for name in sets]
    called = {name.split("_")[0]: name for name in reversed(names)}  # "test_sft" is a test part
    held_out = next((called[name] for name in ("test", "validation", "valid", "dev") if name in called), None)
    first = called.get("train", names[0])
    parts: tuple[tuple[str, _Split | None], ...] = ((first, None),)
    if held_out is not None and held_out != first:
        parts = ((first, "calibration"), (held_out, "held_out"))
    reading, read, documents = None, 0, []
    for name, split in parts:
        rows = iter(sets[name])
        head = list(islice(rows, _SAMPLE))
        reading = reading or _reading_of(head, source, field.removeprefix(_CHAT), field.startswith(_CHAT))
        stream = (reading.document(row) or _Document("", "") for row in chain(head, rows))
        for document in _up_to(stream, _MAX_CHARACTERS):
            read += 1
            if document.text:
                documents.append(_Document(document.text, document.key, split, document.turns))
    what = reading.what if reading else ""
    return documents, SourceReport(source, what, read, len(documents))


def _local_copy(dataset: str) -> str:
    """Offline, the folder of the last snapshot in the hub's cache, else the id itself."""
    from huggingface_hub import constants, snapshot_download

    if not constants.is_offline_mode():
        return dataset
    folder = snapshot_download(dataset, repo_type="dataset")
    if "[" in folder:  # the datasets library takes the path for a pattern
        raise InputError(f"the hub's cache {folder} has brackets in its path; move it and set HF_HUB_CACHE")
    return folder


def _up_to(documents: Iterable[_Document], characters: int) -> Iterator[_Document]:
    """Documents until their length adds up to `characters`, with a progress bar."""
    from tqdm import tqdm

    total = 0
    for document in tqdm(documents, desc="read documents", unit=" documents", leave=False, delay=2):
        yield document
        total += len(document.text)
        if total >= characters:
            return


@contextmanager
def _explained(source: str, dataset: str) -> Iterator[None]:
    """Turn any failure to read `source` into an `InputError`; one that already is passes unchanged."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{source} needs the package '{error.name}'; run pip install 'crosscal[study]'") from error
    except Exception as error:
        raise InputError(_sentence(source, dataset, error)) from error


def _sentence(source: str, dataset: str, error: Exception) -> str:
    """No access, no such data set, a configuration to choose, a script, or no connection."""
    text = " ".join(str(error).split())
    names: set[str] = set()
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        if cause is not None:
            names.add(type(cause).__name__)
            cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in names or "gated" in text.lower() or "401" in text or "403" in text:
        return (
            f"{source} is not open to you; accept its terms at https://huggingface.co/datasets/{dataset} and set "
            "HF_TOKEN to a token of your account, or use an embedded source or a local file"
        )
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError", "RemoteEntryNotFoundError"}:
        return f"the hub has no data set '{dataset}' with these files that you can see; check the name, or set HF_TOKEN"
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{source} needs one of its configurations, as in hub:{dataset}:<config> ({text[:200]})"
    if names & {"EmptyDatasetError", "DataFilesNotFoundError", "StopIteration"}:
        return f"{source} holds no rows in files that can be read here; download its text and give a .jsonl file"
    if "scripts are no longer supported" in text:
        return f"{source} is read by a script, which is not run here; download its text and give a .jsonl file"
    offline = ("ConnectError", "ConnectionError", "ConnectTimeout", "LocalEntryNotFoundError", "OfflineModeIsEnabled")
    why = f"{type(error).__name__}: {text[:160]}"
    why = "it cannot be reached and its local cache has no copy" if names & set(offline) else why
    return (
        f"cannot read {source} from the hub ({why}); connect to the internet and unset HF_HUB_OFFLINE, or use an "
        "embedded source (c4, wikipedia, pubmed, legal, ...) or a local file"
    )
