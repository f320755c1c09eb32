"""The weights of a model on disk, put into the modules of its skeleton when these are needed and taken out after."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from crosscal.disk.checkpoint import Checkpoint, Places
from crosscal.disk.names import WholeModelError
from crosscal.disk.tensorfile import own_memory
from crosscal.errors import InputError
from crosscal.models import decoder_blocks


class Weights:
    """A skeleton with the checkpoint that its weights are in. Raises as `Places` does."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint):
        self.model, self.checkpoint = model, checkpoint
        self.blocks, self.embedding = decoder_blocks(model), model.get_input_embeddings()
        if not isinstance(self.embedding, nn.Embedding):
            raise WholeModelError("its embedding is no plain table")
        self.places = Places(model, checkpoint)
        self._names = {id(module): path for path, module in model.named_modules()}
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}

    def fill(self, module: nn.Module, device: torch.device, *, leave: Collection[nn.Parameter] = ()) -> None:
        """Read the weights of a module and its children, except those to `leave`, and move all to the device."""
        filled = {id(parameter): parameter for parameter in leave}
        for child in module.modules():
            for leaf, old in list(child._parameters.items()):
                if old is not None and id(old) not in filled:
                    tensor = self._read(self._name(child, leaf)).to(device)
                    filled[id(old)] = nn.Parameter(tensor, requires_grad=False)
                if old is not None:
                    child._parameters[leaf] = filled[id(old)]
            for leaf, old in list(child._buffers.items()):
                if old is not None:
                    name = self._name(child, leaf)
                    child._buffers[leaf] = (self._read(name) if name in self.places.of else old).to(device)

    def fill_body(self, device: torch.device) -> None:
        """Read what surrounds the blocks, except for embedding and head."""
        self.fill(self.model.base_model, device, leave=[*self.blocks.parameters(), self.embedding.weight])

    def empty(self, module: nn.Module) -> None:
        """Let go of the weights of a module and its children."""
        emptied: dict[int, nn.Parameter] = {}
        for child in module.modules():
            for leaf, old in list(child._parameters.items()):
                if old is not None and not old.is_meta:
                    hollow = nn.Parameter(torch.empty_like(old, device="meta"), requires_grad=False)
                    child._parameters[leaf] = emptied.setdefault(id(old), hollow)

    @contextmanager
    def embedding_of(self, tokens: Tensor, device: torch.device) -> Iterator[None]:
        """Let the model embed these tokens, whose rows of the embedding alone are kept in memory.

        Raises `InputError` for a token outside the vocabulary.
        """
        module, wanted = self.embedding, tokens.unique()
        if wanted[0] < 0 or wanted[-1] >= len(module.weight):
            raise InputError(
                f"a token is outside the model's vocabulary of {len(module.weight):,}; load the text with the model's "
                "own tokenizer"
            )
        rows = [part[_rows(wanted, first, len(part))] for first, part in self._parts(self._name(module, "weight"))]
        old, padding, index = module.weight, module.padding_idx, wanted.to(device)
        # Nothing is learned here, so that the row for padding needs no gradient kept from it.
        module.weight, module.padding_idx = nn.Parameter(torch.cat(rows).to(device), requires_grad=False), None

        def place_of(_: nn.Module, args: tuple) -> tuple:
            return torch.searchsorted(index, args[0].contiguous()), *args[1:]

        hook = module.register_forward_pre_hook(place_of)
        try:
            yield
        finally:
            hook.remove()
            module.weight, module.padding_idx = old, padding

    def fingerprint(self, *, progress: bool = True) -> str:
        """What `model_fingerprint` says of the loaded model; reads all weights once.

        Raises `InputError` for a weight that is not finite, naming it.
        """
        digest = hashlib.sha256()
        parameters = sorted(dict(self.model.named_parameters()).items())
        for name, parameter in tqdm(parameters, desc="check weights", unit="weight", disable=not progress):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            for _, part in self._parts(name):
                if not part.sum(dtype=torch.float32).isfinite():
                    raise InputError(f"weight {name} holds NaN or infinite values; load an undamaged copy of the model")
                digest.update(part.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def _name(self, module: nn.Module, leaf: str) -> str:
        path = self._names[id(module)]
        return f"{path}.{leaf}" if path else leaf

    def _read(self, name: str) -> Tensor:
        stored, dtype = self.checkpoint.read(self.places.of[name]), self._dtypes[name]
        return stored if stored.dtype == dtype else own_memory(tuple(stored.shape), dtype).copy_(stored)

    def _parts(self, name: str) -> Iterator[tuple[int, Tensor]]:
        for first, part in self.checkpoint.parts(self.places.of[name]):
            yield first, part.to(self._dtypes[name])


def _rows(wanted: Tensor, first: int, count: int) -> Tensor:
    """Which rows of a part that starts at row `first` are wanted, counted within it; `wanted` is sorted."""
    return wanted[(wanted >= first) & (wanted < first + count)] - first
