"""Gradients of the next-token loss with respect to the weights inside the decoder blocks, averaged over windows.

For methods that ask what a weight does for the loss, and not only for its layer's output.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from crosscal.calibration.gradients import WeightGradient
from crosscal.errors import InputError
from crosscal.models.structure import LinearLayer, decoder_blocks, linear_layers


def gather_gradients(
    model: nn.Module, windows: Mapping[str, Int[Tensor, "n length"]], *, progress: bool = True
) -> dict[nn.Module, dict[str, WeightGradient]]:
    """`{module: {source: WeightGradient}}` for every linear layer inside the decoder blocks.

    `windows` maps each text source to its token windows [n, length]; they run one at a time, so that squares are
    per window. The model keeps its mode, its `requires_grad` flags and its `.grad`s, also when this raises, and
    may be in bfloat16. Beyond the activations of one window, two float32 numbers per weight are held for each source.
    `square` is the diagonal of the windows' empirical Fisher information (Kunstner et al. 2019, arXiv 1905.12558).

    Raises `InputError` for a source without windows, windows shorter than 2 tokens, and, naming the source, a loss
    or gradient that is not finite.
    """
    for source, tokens in windows.items():
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
            raise InputError(
                f"windows of source '{source}' are {tuple(tokens.shape)}; give at least one window of at least 2 tokens"
            )
    layers = _block_layers(model)
    found: dict[nn.Module, dict[str, WeightGradient]] = {layer.module: {} for layer in layers}
    # enable_grad alone does not lift a caller's inference mode.
    with torch.inference_mode(False), torch.enable_grad(), _only_these_learn(model, layers):
        for source, tokens in windows.items():
            sums = _sum_over_windows(model, layers, source, tokens, progress)
            for layer in layers:
                found[layer.module][source] = _average(layer, source, sums.pop(layer.module), len(tokens))
    return found


def _block_layers(model: nn.Module) -> list[LinearLayer]:
    """Every linear layer inside the decoder blocks, named "block.layer"; one that blocks share comes once."""
    layers = {
        layer.module: LinearLayer(f"{index}.{layer.name}", layer.module)
        for index, block in enumerate(decoder_blocks(model))
        for layer in linear_layers(block)
    }
    return list(layers.values())


@contextmanager
def _only_these_learn(model: nn.Module, layers: Sequence[LinearLayer]) -> Iterator[None]:
    """Let autograd see the layers' weights and no other parameter, and put flags and gradients back after."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False).grad = None
        for layer in layers:
            layer.module.weight.requires_grad_(True)
        yield
    finally:
        for parameter, flag, grad in before:
            parameter.requires_grad_(flag).grad = grad


def _sum_over_windows(
    model: nn.Module, layers: Sequence[LinearLayer], source: str, tokens: Tensor, progress: bool
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Sums over windows of each module's weight gradient and of its square, in the layout the module stores."""
    modules = [layer.module for layer in layers]
    sums = {module: tuple(torch.zeros_like(module.weight, dtype=torch.float32) for _ in range(2)) for module in modules}
    handles = [module.weight.register_post_accumulate_grad_hook(_adder(*sums[module])) for module in modules]
    device = model.get_input_embeddings().weight.device
    try:
        for window in tqdm(tokens, desc=f"gradients {source}", unit="window", leave=False, disable=not progress):
            # A copy, because tokens made in inference mode cannot be kept for the backward pass.
            loss = _next_token_loss(model, window[None].to(device, copy=True))
            if not loss.isfinite():
                raise InputError(
                    f"the loss on source '{source}' is NaN or infinite; load the model in float32, or check its weights"
                )
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _adder(total: Tensor, squares: Tensor):
    """A hook that adds a finished gradient to the sums and drops it, so that gradients never exist all at once."""

    def add(weight: nn.Parameter) -> None:
        grad, weight.grad = weight.grad.float(), None
        total.add_(grad)
        squares.addcmul_(grad, grad)

    return add


def _next_token_loss(model: nn.Module, ids: Int[Tensor, "1 length"]) -> Float[Tensor, ""]:
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[0, :-1].float(), ids[0, 1:])


def _average(layer: LinearLayer, source: str, sums: tuple[Tensor, Tensor], n_windows: int) -> WeightGradient:
    """Sums become means, in place, seen as [d_out, d_in]."""
    mean, square = (total.div_(n_windows) for total in sums)
    if not square.sum().isfinite():
        raise InputError(
            f"the gradient of layer {layer.name} on source '{source}' is NaN or infinite; load the model in float32"
        )
    stored, seen = layer.module.weight, layer.weight
    if (stored.shape, stored.stride()) != (seen.shape, seen.stride()):  # a transposed weight
        mean, square = mean.T.contiguous(), square.T.contiguous()
    return WeightGradient(mean, square, n_windows)
