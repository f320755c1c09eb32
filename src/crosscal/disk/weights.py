"""A model whose weights stay on disk and are in memory only while they are needed.

A model of 70 billion weights does not fit into the memory of most machines, but any one of its blocks does, and all
that a loop over blocks ever needs is one block and what flows into it. So the model is built as a skeleton:
transformers makes every module as usual, but on torch's `meta` device, where a parameter has a shape and a dtype and no
memory. The skeleton can be asked everything that does not depend on values: which blocks there are, how each is called.

Before a block runs, `fill` reads its tensors from the safetensors files into its modules; when it is done they are
replaced by meta tensors again and their memory goes back to the system. What surrounds the blocks is filled only while
windows enter or leave them, and of the embedding only the rows of the tokens that occur. Buffers (rotary frequencies,
masks) are in no file; the model's own initialization computes them, and computes them twice, from different contents,
to prove that they depend on nothing else. Because names, dtypes and rounding follow transformers' own loading, the
numbers are, bit for bit, those of the loaded model, and so is the fingerprint.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from crosscal.disk.checkpoint import WholeModelError, _Checkpoint, _Places
from crosscal.engine.driver import Residence
from crosscal.engine.reports import LayerReport
from crosscal.engine.streams import PROBE_TOKENS, Streams
from crosscal.errors import InputError
from crosscal.models import find_folder, load_tokenizer
from crosscal.models.folders import attention_of, read_config
from crosscal.models.heads import check_head
from crosscal.models.layout import Stored
from crosscal.models.loading import resolve_device, resolve_dtype
from crosscal.output.tensorfile import TensorFile
from crosscal.types import Width


class StreamedModel(Residence):
    """A model on disk, read block by block: `name`, `tokenizer` and `fingerprint` as of a loaded one.

    The arguments are those of `load_model`. Raises `InputError` as it does, and for models that cannot be read so:
    GGUF files, blocks that share weights, checkpoints in another layout than the model.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        accept_terms: bool = False,
        trust_remote_code: bool = False,
        folder: Path | None = None,
        progress: bool = True,
        skip: Sequence[str] = (),
        only: Sequence[str] = (),
        width: Width | None = None,
    ):
        where = resolve_device(device)
        self.dtype = resolve_dtype(dtype, where)
        options = {"dtype": self.dtype, "accept_terms": accept_terms, "trust_remote_code": trust_remote_code}
        self.name, self.folder, self.progress = str(name), folder or find_folder(name, **options), progress
        self._trusted = trust_remote_code
        skeleton = _skeleton(self.folder, self.name, self.dtype, trust_remote_code)
        super().__init__(skeleton, skip=skip, only=only, width=width)
        self.device = where
        self._embedding = self.model.get_input_embeddings()
        if not isinstance(self._embedding, nn.Embedding):
            raise WholeModelError("its embedding is no plain table")
        self._checkpoint = _Checkpoint(self.folder)
        self._places = _Places(self.model, self.inventory, self._checkpoint, width=width)
        self._names = {id(module): path for path, module in self.model.named_modules()}
        self._hollow = {module: dict(module._parameters) for module in self.model.modules()}
        self._dtypes = {name: tensor.dtype for name, tensor in self.model.state_dict().items()}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model's folder."""
        return load_tokenizer(self.folder, trust_remote_code=self._trusted)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the loaded model, `model_fingerprint`; reads all weights once.

        Raises `InputError` for a weight that is not finite, naming it.
        """
        digest = hashlib.sha256()
        parameters = sorted(dict(self.model.named_parameters()).items())
        for name, parameter in tqdm(parameters, desc="check weights", unit="weight", disable=not self.progress):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            for _, part in self._parts(name):
                if not part.sum(dtype=torch.float32).isfinite():
                    raise InputError(f"weight {name} holds NaN or infinite values; load an undamaged copy of the model")
                digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def fill(self, index: int) -> nn.Module:
        """Read a block's weights from disk."""
        self._fill(self.blocks[index])
        return self.blocks[index]

    def release(self, index: int) -> None:
        """Let go of a block's weights."""
        self._empty(self.blocks[index])

    def done(self, index: int, reports: Sequence[LayerReport] = ()) -> None:
        """Let go of a block's weights, and take note of it."""
        self.release(index)
        super().done(index, reports)

    def streams(self, sources: Mapping[str, Tensor], micro_batch: int | None) -> Streams:
        """Return the windows of every source in front of block `first`."""
        tokens = torch.cat([torch.arange(PROBE_TOKENS), *(part[part >= 0] for part in sources.values())])
        firsts = {type(block): block for block in reversed(self.blocks)}.values()
        with self.surroundings(tokens):
            try:
                for block in firsts:  # which show in what form blocks of their class return their output
                    self._fill(block)
                return self._opened(sources, micro_batch)
            finally:
                for block in firsts:
                    self._empty(block)

    def _opened(self, sources: Mapping[str, Tensor], micro_batch: int | None) -> Streams:
        return Streams(self.model, self.inventory, sources, micro_batch)

    @contextmanager
    def surroundings(self, tokens: Tensor) -> Iterator[None]:
        """Hold what surrounds the blocks, and the rows of the embedding that these tokens need.

        Raises `InputError` for a token outside the vocabulary.
        """
        leave = [*self.blocks.parameters(), self._embedding.weight]
        self._fill(self.model.base_model, leave=leave)
        try:
            with self._rows_of(tokens):
                yield
        finally:
            self._empty(self.model.base_model)

    @contextmanager
    def head(self) -> Iterator[nn.Module]:
        """Hold the weights of the head, and yield the model for `head_logits`.

        Raises `InputError` for a head that does more than `head_logits` knows.
        """
        streams = self.streams({}, None)
        self._fill(self.model.get_output_embeddings())
        try:
            with self.surroundings(torch.arange(PROBE_TOKENS + 1)), streams.stubbed():  # the tokens of `check_head`
                check_head(self.model)
            yield self.model
        finally:
            self._empty(self.model)

    def _fill(self, module: nn.Module, *, leave: Collection[nn.Parameter] = ()) -> None:
        """Read the weights of a module and its children, except those to `leave`, and move all to the device."""
        filled = {id(parameter): parameter for parameter in leave}
        made: dict[str, Tensor] = {}
        for child in module.modules():
            for leaf, old in list(child._parameters.items()):
                if old is not None and id(old) not in filled:
                    tensor = self._read(self._name(child, leaf), made).to(self.device)
                    filled[id(old)] = nn.Parameter(tensor, requires_grad=False)
                if old is not None:
                    child._parameters[leaf] = filled[id(old)]
            for leaf, old in list(child._buffers.items()):
                if old is not None:
                    name = self._name(child, leaf)
                    child._buffers[leaf] = (self._read(name, made) if name in self._places.of else old).to(self.device)

    def _empty(self, module: nn.Module) -> None:
        """Let go of the weights of a module and its children; parameters that were tied are so again."""
        for child in module.modules():
            child._parameters.update(self._hollow[child])

    @contextmanager
    def _rows_of(self, tokens: Tensor) -> Iterator[None]:
        """Let the model embed these tokens, whose rows of the embedding alone are kept in memory."""
        module, wanted = self._embedding, tokens.unique()
        if wanted[0] < 0 or wanted[-1] >= len(module.weight):
            raise InputError(
                f"a token is outside the model's vocabulary of {len(module.weight):,}; load the text with the model's "
                "own tokenizer"
            )
        rows = []
        for first, part in self._parts(self._name(module, "weight")):
            rows.append(part[wanted[(wanted >= first) & (wanted < first + len(part))] - first])
        old, padding, index = module.weight, module.padding_idx, wanted.to(self.device)
        # Nothing is learned here, so that the row for padding needs no gradient kept from it.
        module.weight, module.padding_idx = nn.Parameter(torch.cat(rows).to(self.device), requires_grad=False), None

        def place_of(_: nn.Module, args: tuple) -> tuple:
            return torch.searchsorted(index, args[0].contiguous()), *args[1:]

        hook = module.register_forward_pre_hook(place_of)
        try:
            yield
        finally:
            hook.remove()
            module.weight, module.padding_idx = old, padding

    def _name(self, module: nn.Module, leaf: str) -> str:
        path = self._names[id(module)]
        return f"{path}.{leaf}" if path else leaf

    def _read(self, name: str, made: dict[str, Tensor]) -> Tensor:
        """Return a parameter in its dtype; others that were made of the same tensors are put into `made`."""
        part, dtype = self._places.of[name], self._dtypes[name]
        name = name if name in part.names else part.names[0]  # tied to it
        if name not in made:
            made |= part.read(self._checkpoint.read)
        stored = made.pop(name)
        return stored if stored.dtype == dtype else TensorFile.empty(tuple(stored.shape), dtype).copy_(stored)

    def _parts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """Yield a parameter in its dtype, in parts of some rows where it is stored as it is."""
        part = self._places.of[name]
        (key, *more) = part.keys
        whole = bool(more) or type(part) is not Stored
        for first, rows in [(0, self._read(name, {}))] if whole else self._checkpoint.parts(key):
            yield first, rows.to(self._dtypes[name])


def _skeleton(folder: Path, name: str, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model that `load_model` would load from this folder in this dtype, with meta parameters.

    Raises `InputError` for a folder that holds no causal language model or a quantized one, and `WholeModelError` for
    one that keeps parameters in different dtypes or computes buffers in a way that cannot be repeated.
    """
    config = read_config(folder, name, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise InputError(f"{name} is quantized already; give the model that it was made from")
    options = {"attn_implementation": attention_of(config)}
    options |= {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    if getattr(model, "_get_dtype_plan", lambda _: {})(dtype):
        raise WholeModelError("it keeps some of its weights in float32")
    _compute_buffers(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers (rotary frequencies, masks, scales), as transformers itself does after loading.

    Each is computed twice, from different contents: what then differs was not computed at all.
    """
    owners: dict[str, PreTrainedModel] = {}
    with torch.random.fork_rng(devices=[]):
        for path, module in model.named_modules():
            parent = owners.get(path.rpartition(".")[0], model)
            owners[path] = module if isinstance(module, PreTrainedModel) else parent
            names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
            if not names:
                continue
            ones, zeros = (_computed(owners[path], module, names, fill) for fill in (1, 0))
            for name, one, zero in zip(names, ones, zeros, strict=True):
                stored = name not in module._non_persistent_buffers_set  # then the checkpoint has it
                if not stored and not torch.equal(one, zero):
                    raise WholeModelError(f"its buffer {path}.{name} is only computed when the whole model is loaded")


def _computed(owner: PreTrainedModel, module: nn.Module, names: list[str], fill: int) -> list[Tensor]:
    for name in names:
        empty = module.get_buffer(name)
        module._buffers[name] = torch.full(empty.shape, fill, dtype=empty.dtype, device="cpu")
    owner._init_weights(module)
    return [module.get_buffer(name) for name in names]
