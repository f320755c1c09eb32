"""Text from data sets of the Hugging Face Hub: `hub:<dataset id>[:config][#field]`.

The data sets of the two papers are read file by file, because some of their repositories still carry a loading
script, which the `datasets` library refuses. Files in the hub's own local cache are used first; `HF_HUB_OFFLINE` and
`HF_TOKEN` are honoured by the hub's libraries. Large sets are streamed and read only as far as needed.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice, zip_longest

from crosscal.errors import InputError
from crosscal.text.documents import OWN_SHARE, split_documents
from crosscal.text.files import text_of
from crosscal.text.hub_errors import hub_errors_explained
from crosscal.text.hub_sets import KNOWN, HubFiles, Row
from crosscal.text.readers import Document
from crosscal.text.registry import Split

MAX_CHARACTERS = 20_000_000  # about 4.5 million tokens: more windows than any study here draws
MAX_CHARACTERS_LARGE = 60_000_000  # where only documents longer than a window count: some 25,000 web pages


def drawn_within(source: str) -> bool:
    """Whether windows of this source are by custom cut inside long documents: the large web sets.

    >>> drawn_within("hub:allenai/c4"), drawn_within("hub:FiscalNote/billsum"), drawn_within("c4")
    (True, False, False)
    """
    known = KNOWN.get(source.removeprefix("hub:"))
    return source.startswith("hub:") and known is not None and known.large


def hub_documents(source: str, split: str) -> list[str]:
    """The documents of one part of a hub data set; raises `InputError` when it cannot be had, with what to do.

    Parts are the publisher's where there are any (train, and test or validation), else a hash of each document.
    """
    found = list(_parts(source)[split])
    if not found:
        raise InputError(f"the {split} part of {source} holds no text; use another data set or your own file")
    return found


@lru_cache(maxsize=4)
def _parts(source: str) -> dict[str, tuple[str, ...]]:
    """Both parts of a hub source, cleaned of equal documents; calibration documents never return as held-out ones."""
    dataset, config, field = _parse(source)
    known = KNOWN.get(dataset) if not config and not field else None
    with hub_errors_explained(source, dataset):
        found = _any_documents(source, dataset, config, field) if known is None else _known_documents(dataset, known)
        return split_documents(found, OWN_SHARE)


def _parse(source: str) -> tuple[str, str, str]:
    """(dataset id, config, field) of `hub:<id>[:config][#field]`.

    >>> _parse("hub:Salesforce/wikitext:wikitext-103-raw-v1#text")
    ('Salesforce/wikitext', 'wikitext-103-raw-v1', 'text')
    """
    name, _, field = source.removeprefix("hub:").partition("#")
    dataset, _, config = name.partition(":")
    if not dataset or dataset.count("/") > 1 or dataset != dataset.strip():
        raise InputError(f"'{source}' is no data set of the hub; write hub:<owner>/<name>, such as hub:allenai/c4")
    return dataset, config, field


def _known_documents(dataset: str, known: HubFiles) -> Iterator[Document]:
    parts: tuple[tuple[tuple[str, ...], Split | None], ...]
    if known.held_out:
        parts = ((known.calibration, "calibration"), (known.held_out, "held_out"))
    else:
        parts = ((known.calibration, None),)
    for files, split in parts:
        streams = [_rows(known.kind, file) for file in _addresses(dataset, files, known.large)]
        rows = (row for turn in zip_longest(*streams) for row in turn if row is not None)
        limit = MAX_CHARACTERS_LARGE if known.large and split != "held_out" else MAX_CHARACTERS
        for text in _up_to(known.texts(rows), limit):
            yield Document(text, text, split)


def _addresses(dataset: str, files: tuple[str, ...], large: bool) -> list[str]:
    """Where to read the files: in the hub's local cache, downloaded into it, or, if large, streamed from the hub."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    found = []
    for file in files:
        cached = try_to_load_from_cache(dataset, file, repo_type="dataset")
        if isinstance(cached, str):
            found.append(cached)
        elif large and not constants.is_offline_mode():
            found.append(f"hf://datasets/{dataset}/{file}")
        else:
            found.append(hf_hub_download(dataset, file, repo_type="dataset"))
    return found


def _rows(kind: str, file: str) -> Iterator[Row]:
    from datasets import load_dataset

    return iter(load_dataset(kind, data_files=[file], split="train", streaming=True))


def _any_documents(source: str, dataset: str, config: str, field: str) -> Iterator[Document]:
    """Any other data set, as the `datasets` library sees it: its parts if it has two, else one to be split."""
    from datasets import load_dataset

    found = load_dataset(_local_copy(dataset), config or None, streaming=True)
    names = list(found)
    held_out = next((name for name in ("test", "validation", "valid", "dev") if name in names), None)
    first = "train" if "train" in names else names[0]
    parts: tuple[tuple[str, Split | None], ...] = ((first, None),)
    if held_out is not None and held_out != first:
        parts = ((first, "calibration"), (held_out, "held_out"))
    for name, split in parts:
        for text in _up_to(_texts_of(source, found[name], field), MAX_CHARACTERS):
            yield Document(text, text, split)


def _local_copy(dataset: str) -> str:
    """Offline, the folder of the last snapshot in the hub's cache, else the id itself."""
    from huggingface_hub import constants, snapshot_download

    return snapshot_download(dataset, repo_type="dataset") if constants.is_offline_mode() else dataset


def _texts_of(source: str, rows: Iterable[Row], field: str) -> Iterator[str]:
    """The field asked for, or "text", or the first string of each row."""
    rows = iter(rows)
    for row in islice(rows, 1):
        if field and not isinstance(row.get(field), str):
            raise InputError(f"{source} has no text field '{field}'; its fields are {', '.join(row)}")
        if text_of(row, field or "text") is None:
            raise InputError(f"{source} has no field with text; its fields are {', '.join(row)}")
        rows = chain([row], rows)
    for row in rows:
        yield row[field] or "" if field else text_of(row) or ""


def _up_to(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts until their length adds up to `characters`, with a progress bar."""
    from tqdm import tqdm

    total = 0
    for text in tqdm(texts, desc="read documents", unit=" documents", leave=False, delay=2):
        yield text
        total += len(text)
        if total >= characters:
            return
