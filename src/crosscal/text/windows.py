"""Token windows: documents, shuffled by a seed, tokenized, packed, cut, and drawn by the same seed."""

import hashlib
import logging
import os
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from crosscal.errors import InputError, suggest, whole_number
from crosscal.text.documents import _full_name, _part, _parts
from crosscal.text.fields import _Document, _whole_text
from crosscal.text.hub import _drawn_within
from crosscal.text.own import SourceReport, _changed_at, _file_of, _is_path

_Packing = Literal["auto", "packed", "within"]
_PACKINGS = ("auto", "packed", "within")

_UNKNOWN_TOLD, _UNKNOWN_REFUSED = 0.1, 0.5  # shares of unknown tokens: a warning is logged, a text is refused
_PROGRESS_FROM = 2_000_000  # characters: below that, tokenizing takes about a second
_BATCH = 64  # documents a call
_COMPARED = 32  # documents that are decoded again where a tokenizer has no unknown token

_Told = namedtuple("_Told", "unknown refused")  # share of unknown tokens, chats that the template refuses
log = logging.getLogger(__name__)
_token_cache: WeakKeyDictionary = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class TextWindows:
    """`tokens` [n_windows, length] (int64) of one part of a source, with the seed that drew them.

    `fingerprint` hashes source, part, packing, seed and every token: equal windows, equal fingerprint. `report` says
    what was read of the source, with the share of unknown tokens; None for windows that no source was read for.
    """

    source: str
    split: str
    tokens: Int[Tensor, "n_windows length"]
    seed: int
    fingerprint: str
    report: SourceReport | None = None

    @classmethod
    def of(
        cls, source: str, split: str, how: str, seed: int, tokens: Tensor, report: SourceReport | None = None
    ) -> "TextWindows":
        """Return windows with their fingerprint; `how` stands for all that decides them besides the seed."""
        # A file counts by its name, not by where it lies or which of its fields is read.
        name = _file_of(source)[0].name if not source.startswith("hub:") and _is_path(source) else source
        head = f"{name}\n{split}\n{how}\n{tuple(tokens.shape)}\n{seed}\n".encode()
        digest = hashlib.sha256(head + tokens.contiguous().numpy().astype("<i8").tobytes())
        return cls(source, split, tokens, seed, digest.hexdigest()[:16], report)

    def __len__(self) -> int:
        """Number of windows."""
        return self.tokens.shape[0]


def load_text(
    source: str | os.PathLike,
    tokenizer,
    *,
    n_windows: int = 128,
    length: int = 1024,
    seed: int = 0,
    split: str = "calibration",
    packing: _Packing = "auto",
    field: str = "",
    chat: bool = False,
) -> TextWindows:
    """Draw `n_windows` windows of `length` tokens from one part of a text source.

    `source` is an embedded name (`crosscal.text.SOURCES`), `hub:<dataset id>[:config][#field]`, or the path of a text
    or JSON file. `field` names the field that holds the text (`a.b` for nested ones; without it, the rule of
    `crosscal.text.fields` chooses, and `report` says which). With `chat`, rows are chats and are written with the
    tokenizer's chat template. The documents of `split` ("calibration" or "held_out", which never share one) are
    shuffled with `seed` and

    * `packing="packed"`: joined, an end-of-sequence token after each (chats end as their template ends), and cut into
      windows that do not overlap, of which `n_windows` are drawn; the first windows of a larger draw with the same seed
      are those of a smaller one;
    * `packing="within"`: each window is cut at a random place from one document longer than the window, a document at
      most once (the custom of the pruning literature for C4, Frantar & Alistarh 2023);
    * `packing="auto"`: "within" for C4 and RedPajama from the hub, "packed" elsewhere.

    The text is tokenized without special tokens; where the tokenizer by default starts a text with a
    beginning-of-sequence token, each window starts with it too. Raises `InputError` with what to do instead, also for
    text of which the tokenizer does not know half.
    """
    _check_request(n_windows, length, seed, packing)
    name = _full_name(source, field, chat)
    if packing == "auto":
        packing = "within" if _drawn_within(name) else "packed"
    generator = torch.Generator().manual_seed(seed)
    start = _start_tokens(tokenizer)
    draw = _packed if packing == "packed" else _within
    body, told = draw(name, split, tokenizer, n_windows, length - len(start), generator)
    tokens = torch.cat([torch.tensor(start, dtype=torch.int64).expand(n_windows, -1), body.long()], dim=1)
    report = _parts(name, _changed_at(name))[1]
    refused = {"refused by the chat template": told.refused} if told.refused else {}
    report = replace(report, unknown=told.unknown, dropped=report.dropped | refused)
    return TextWindows.of(str(source), split, packing, seed, tokens, report)


def _draw_packed(
    name: str, texts: list[str], tokenizer, n_windows: int, length: int, seed: int
) -> Int[Tensor, "n_windows length"]:
    """Return windows of texts at hand, packed as `load_text` packs documents; errors call the text by `name`."""
    start = torch.tensor(_start_tokens(tokenizer), dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    stream = _joined(_token_ids(texts, tokenizer), tokenizer.eos_token_id, generator)
    body = _cut(name, stream, n_windows, length - len(start), generator)
    return torch.cat([start.expand(n_windows, -1), body.long()], dim=1)


def _packed(name: str, split: str, tokenizer, n: int, length: int, generator: torch.Generator) -> tuple[Tensor, _Told]:
    """Join all documents in an order drawn from `generator`, cut every window, draw `n` of them."""
    pieces, told = _tokenized(name, split, tokenizer)
    is_chat = bool(_part(name, split)[0].turns)
    stream = _joined(pieces, None if is_chat else tokenizer.eos_token_id, generator)
    return _cut(f"{name} {split}", stream, n, length, generator), told


def _joined(pieces: list[Tensor], eos: int | None, generator: torch.Generator) -> Int[Tensor, " tokens"]:
    order = torch.randperm(len(pieces), generator=generator).tolist()
    end = torch.tensor([] if eos is None else [eos], dtype=torch.int32)
    return torch.cat([piece for i in order for piece in (pieces[i], end)])


def _cut(name: str, stream: Tensor, n: int, length: int, generator: torch.Generator) -> Int[Tensor, "n length"]:
    """`n` of the windows that a stream of tokens gives; raises `InputError` when there are fewer."""
    available = len(stream) // length
    if available < n:
        most = f"at most {available} windows of {length}" if available else f"not one window of {length}"
        raise InputError(
            f"{name} holds {len(stream):,} tokens, {most}; ask for fewer windows than {n}, or shorter ones "
            "(in a report or a study: take a smaller preset), or give more text"
        )
    chosen = torch.randperm(available, generator=generator)[:n]
    return stream[: available * length].view(available, length)[chosen]


def _within(name: str, split: str, tokenizer, n: int, length: int, generator: torch.Generator) -> tuple[Tensor, _Told]:
    """Cut one window at a random place from each of the first `n` documents that are longer than it.

    Documents are tokenized in the order drawn, and only until enough are read: the web sets are large.
    """
    # A token covers at least one character, so a text with fewer characters than a window has tokens is too short.
    documents = [document for document in _part(name, split) if len(document.text) > length or document.turns]
    order = torch.randperm(len(documents), generator=generator).tolist()
    windows: list[Tensor] = []
    ids: list[Tensor] = []
    while len(windows) < n and len(ids) < len(order):
        batch = _ids_of([documents[j] for j in order[len(ids) : len(ids) + _BATCH]], name, tokenizer)
        ids += batch
        for row in batch:
            if len(row) > length and len(windows) < n:
                first = int(torch.randint(len(row) - length, (), generator=generator))
                windows.append(row[first : first + length])
    if len(windows) < n:
        raise InputError(
            f"{name} {split} holds {len(windows)} documents longer than {length} tokens, and {n} windows need one "
            'each; ask for fewer or shorter windows, or use packing="packed"'
        )
    return torch.stack(windows), _told(f"{name} {split}", [documents[j] for j in order], ids, tokenizer)


def _tokenized(name: str, split: str, tokenizer) -> tuple[list[Int[Tensor, " tokens"]], _Told]:
    """The token ids of each document (int32), kept in memory for as long as the tokenizer lives."""
    kept = _token_cache.setdefault(tokenizer, {})
    key = (name, split, _changed_at(name), str(getattr(tokenizer, "chat_template", None)))
    if key not in kept:
        documents = _part(name, split)
        silent = sum(len(document.text) for document in documents) < _PROGRESS_FROM
        ids: list[Tensor] = []
        for i in tqdm(range(0, len(documents), _BATCH), desc=f"tokenize {name}", disable=silent, leave=False):
            ids += _ids_of(documents[i : i + _BATCH], name, tokenizer)
        if not any(len(row) for row in ids):
            why = "; its chat template refuses such turns" if documents[0].turns else ""
            raise InputError(f"the {split} part of {name} gives no tokens with this tokenizer{why}; give other text")
        kept[key] = ids, _told(f"{name} {split}", documents, ids, tokenizer)
    return kept[key]


def _ids_of(documents: Sequence[_Document], name: str, tokenizer) -> list[Int[Tensor, " tokens"]]:
    """Token ids of documents; chats are written with the tokenizer's template, and none where that refuses one."""
    if not documents[0].turns:
        return _token_ids([document.text for document in documents], tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"{name} holds chats and the model's tokenizer has no chat template; use a chat model, or leave --chat out "
            "and name the text of the turns with --field messages.content"
        )
    return _token_ids([_rendered(document, tokenizer) for document in documents], tokenizer, special=True)


def _rendered(document: _Document, tokenizer) -> str:
    try:
        return _whole_text(tokenizer.apply_chat_template(list(document.turns), tokenize=False))
    except Exception:  # whatever a template may raise: it wants other roles, or another order
        return ""


def _told(name: str, documents: Sequence[_Document], ids: list[Tensor], tokenizer) -> _Told:
    """What the tokenizer makes of documents; warns of unknown tokens, and raises `InputError` where they are half."""
    total, unk = max(1, sum(map(len, ids))), tokenizer.unk_token_id
    if unk is not None:
        unknown = sum(int((row == unk).sum()) for row in ids) / total
    else:  # what it does not know is missing from its own spelling
        texts = ["".join(document.text.split()) for document in documents[: len(ids)][:_COMPARED]]
        spelt = sum(len("".join(tokenizer.decode(row).split())) for row in ids[:_COMPARED])
        unknown = max(0.0, 1 - spelt / max(1, sum(map(len, texts))))
    if unknown > _UNKNOWN_REFUSED:
        raise InputError(
            f"{100 * unknown:.0f} % of {name} is unknown to the model's tokenizer; give text in a script and language "
            "that it knows, or another model"
        )
    if unknown > _UNKNOWN_TOLD:
        log.warning("%.0f %% of %s is unknown to the model's tokenizer", 100 * unknown, name)
    return _Told(unknown, sum(not len(row) for row in ids) if documents[0].turns else 0)


def _token_ids(texts: list[str], tokenizer, special: bool = False) -> list[Int[Tensor, " tokens"]]:
    """Token ids of each text (int32): none around it, and unless `special`, what looks like a special one is text."""
    how = {"add_special_tokens": False, "split_special_tokens": not special, "verbose": False}
    batch = tokenizer(texts, return_attention_mask=False, **how)
    return [torch.tensor(row, dtype=torch.int32) for row in batch["input_ids"]]


def _start_tokens(tokenizer) -> list[int]:
    """The beginning-of-sequence token if this tokenizer puts one before every text, else nothing."""
    first = tokenizer("a")["input_ids"][:1]
    return first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []


def _check_request(n_windows: int, length: int, seed: int, packing: str) -> None:
    """Raise `InputError` for a count, length, seed or packing that makes no sense."""
    whole_number("n_windows", n_windows, 1)
    whole_number("length", length, 2)
    whole_number("seed", seed)
    if packing not in _PACKINGS:
        near = suggest(str(packing), list(_PACKINGS))
        raise InputError(f"there is no packing '{packing}'{near} (use packed or within)")
