"""Token windows: documents, shuffled by a seed, tokenized, packed, cut, and drawn by the same seed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from crosscal.errors import InputError, suggest
from crosscal.text.documents import documents
from crosscal.text.files import is_path
from crosscal.text.registry import check_split

Packing = Literal["auto", "packed", "within"]
PACKINGS = ("auto", "packed", "within")

PROGRESS_FROM = 2_000_000  # characters: below that, tokenizing takes about a second
BATCH = 64  # documents a call

_token_cache: WeakKeyDictionary = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class TextWindows:
    """`tokens` [n_windows, length] (int64) of one part of a source, with the seed that drew them.

    `fingerprint` hashes source, part, packing, seed and every token: equal windows, equal fingerprint.
    """

    source: str
    split: str
    tokens: Int[Tensor, "n_windows length"]
    seed: int
    fingerprint: str

    def __len__(self) -> int:
        """Number of windows."""
        return self.tokens.shape[0]


def load_text(
    source: str,
    tokenizer,
    *,
    n_windows: int = 128,
    length: int = 1024,
    seed: int = 0,
    split: str = "calibration",
    packing: Packing = "auto",
) -> TextWindows:
    """Draw `n_windows` windows of `length` tokens from one part of a text source.

    `source` is an embedded name (`crosscal.text.SOURCES`), `hub:<dataset id>[:config][#field]`, or a .txt or .jsonl
    file. The documents of `split` ("calibration" or "held_out", which never share one) are shuffled with `seed` and

    * `packing="packed"`: joined, an end-of-sequence token after each, and cut into windows that do not overlap, of
      which `n_windows` are drawn; the first windows of a larger draw with the same seed are those of a smaller one;
    * `packing="within"`: each window is cut at a random place from one document longer than the window, a document at
      most once (the custom of the pruning literature for C4, Frantar & Alistarh 2023);
    * `packing="auto"`: "within" for C4 from the hub, "packed" elsewhere.

    The text is tokenized without special tokens; where the tokenizer by default starts a text with a
    beginning-of-sequence token, each window starts with it too. Raises `InputError` with what to do instead.
    """
    _check_request(n_windows, length, seed, packing)
    check_split(split)
    if packing == "auto":
        packing = "within" if source.startswith("hub:allenai/c4") else "packed"
    found = _tokenized(source, split, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found), generator=generator).tolist()
    shuffled = [found[i] for i in order]
    start = _start_tokens(tokenizer)
    room = length - len(start)
    draw = _packed if packing == "packed" else _within
    body = draw(shuffled, n_windows, room, generator, f"{source} {split}", tokenizer.eos_token_id)
    tokens = torch.cat([torch.tensor(start).expand(n_windows, -1).long(), body.long()], dim=1)
    return TextWindows(source, split, tokens, seed, _fingerprint(source, split, packing, seed, tokens))


def _packed(docs: list[Tensor], n: int, length: int, generator: torch.Generator, name: str, eos: int | None) -> Tensor:
    """Join all documents, cut every window, draw `n` of them."""
    end = torch.tensor([] if eos is None else [eos], dtype=torch.int32)
    stream = torch.cat([piece for doc in docs for piece in (doc, end)])
    available = len(stream) // length
    if available < n:
        most = f"at most {available} windows of {length}" if available else f"not one window of {length}"
        raise InputError(
            f"{name} holds {len(stream):,} tokens, {most}; ask for fewer windows than {n}, or for shorter ones"
        )
    chosen = torch.randperm(available, generator=generator)[:n]
    return stream[: available * length].view(available, length)[chosen]


def _within(docs: list[Tensor], n: int, length: int, generator: torch.Generator, name: str, eos: int | None) -> Tensor:
    """Cut one window at a random place from each of the first `n` documents that are longer than it."""
    long_enough = [doc for doc in docs if len(doc) > length][:n]
    if len(long_enough) < n:
        raise InputError(
            f"{name} holds {len(long_enough)} documents longer than {length} tokens, and {n} windows need one each; "
            'ask for fewer or shorter windows, or use packing="packed"'
        )
    starts = [int(torch.randint(len(doc) - length, (), generator=generator)) for doc in long_enough]
    return torch.stack([doc[s : s + length] for doc, s in zip(long_enough, starts, strict=True)])


def _tokenized(source: str, split: str, tokenizer) -> list[Int[Tensor, " tokens"]]:
    """The token ids of each document (int32), kept in memory for as long as the tokenizer lives."""
    kept = _token_cache.setdefault(tokenizer, {})
    key = (source, split, Path(source).stat().st_mtime_ns if Path(source).is_file() else 0)
    if key not in kept:
        texts = documents(source, split)
        silent = sum(map(len, texts)) < PROGRESS_FROM
        ids = []
        for i in tqdm(range(0, len(texts), BATCH), desc=f"tokenize {source}", disable=silent, leave=False):
            batch = tokenizer(
                texts[i : i + BATCH], add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            ids += [torch.tensor(row, dtype=torch.int32) for row in batch["input_ids"]]
        if not any(len(row) for row in ids):
            raise InputError(f"the {split} part of {source} gives no tokens with this tokenizer; give other text")
        kept[key] = ids
    return kept[key]


def _start_tokens(tokenizer) -> list[int]:
    """The beginning-of-sequence token if this tokenizer puts one before every text, else nothing."""
    first = tokenizer("a")["input_ids"][:1]
    return first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []


def _fingerprint(source: str, split: str, packing: str, seed: int, tokens: Tensor) -> str:
    """16 hex digits of SHA-256; a file counts by its name, not by where it lies."""
    name = Path(source).name if is_path(source) and not source.startswith("hub:") else source
    head = f"{name}\n{split}\n{packing}\n{tuple(tokens.shape)}\n{seed}\n".encode()
    return hashlib.sha256(head + tokens.contiguous().numpy().astype("<i8").tobytes()).hexdigest()[:16]


def _check_request(n_windows: int, length: int, seed: int, packing: str) -> None:
    """Raise `InputError` for a count, length, seed or packing that makes no sense."""
    for name, value, least in (("n_windows", n_windows, 1), ("length", length, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; give a whole number of at least {least}")
    if packing not in PACKINGS:
        raise InputError(f"there is no packing '{packing}'{suggest(packing, list(PACKINGS))} (use packed or within)")
