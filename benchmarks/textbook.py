"""Wanda, SparseGPT and GPTQ the way a textbook would write them: clear, float32, and with no thought of speed.

Two full passes per block, one sum for every linear layer, three factorizations for each Hessian and a Python loop
over columns. What `run.py` measures the package against.
"""

import torch

from crosscal.models import decoder_blocks, linear_layers


@torch.no_grad()
def compress(model, method: str, tokens: torch.Tensor, sparsity: float = 0.5, bits: int = 4, group: int = 128) -> None:
    """Compress a float32 Llama-like model in place, block by block."""
    hidden, call = _first_inputs(model, tokens)
    for block in decoder_blocks(model):
        layers = linear_layers(block)
        sums = {layer.name: 0 for layer in layers}

        def add(name, inputs, sums=sums):
            flat = inputs[0].flatten(0, 1)
            # Wanda needs no more than the norms, and a textbook would not compute more.
            sums[name] = sums[name] + (flat.square().sum(dim=0) if method == "wanda" else flat.T @ flat)

        hooks = [
            layer.module.register_forward_pre_hook(lambda _, args, name=layer.name: add(name, args)) for layer in layers
        ]
        for window in hidden:
            block(window, **call)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            weight, total = layer.weight.clone(), sums[layer.name]
            if method == "wanda":
                layer.write(wanda(weight, total, sparsity))
            elif method == "sparsegpt":
                layer.write(sparsegpt(weight, total, sparsity))
            else:
                layer.write(gptq(weight, total, bits, group))
        hidden = [block(window, **call) for window in hidden]


def _first_inputs(model, tokens):
    """The inputs of the first block, one window at a time, and the block's other arguments."""
    hidden, calls = [], []

    def keep(_, args, kwargs):
        hidden.append(args[0])
        calls.append({k: v for k, v in kwargs.items() if k not in ("past_key_values", "use_cache")})

    hook = decoder_blocks(model)[0].register_forward_pre_hook(keep, with_kwargs=True)
    for window in tokens:
        model.base_model(window[None], use_cache=False)
    hook.remove()
    return hidden, calls[0]


def wanda(weight, squares, sparsity):
    """Sort each row's scores, drop the first ones."""
    order = (weight.abs() * squares.sqrt()).sort(dim=1).indices
    return weight.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], 0)


def _inverse_factor(weight, gram, damp):
    """The upper Cholesky factor of the inverse Hessian, by three factorizations; dead inputs lose their weights."""
    dead = gram.diagonal() == 0
    gram[dead, dead] = 1
    weight[:, dead] = 0
    gram.diagonal().add_(damp * gram.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    return torch.linalg.cholesky(inverse, upper=True)


def sparsegpt(weight, gram, sparsity, damp=0.01, block=128):
    """Algorithm 1 of Frantar & Alistarh 2023, one column at a time."""
    upper = _inverse_factor(weight, gram, damp)
    for start in range(0, weight.shape[1], block):
        end = min(start + block, weight.shape[1])
        scores = weight[:, start:end] ** 2 / upper.diagonal()[start:end] ** 2
        drop = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]
        errors = torch.zeros_like(scores)
        for j in range(start, end):
            value = weight[:, j].clone()
            value[drop[:, j - start]] = 0
            errors[:, j - start] = (weight[:, j] - value) / upper[j, j]
            weight[:, j] = value
            weight[:, j + 1 : end] -= errors[:, j - start, None] * upper[j, j + 1 : end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    return weight


def gptq(weight, gram, bits, group, damp=0.01, block=128):
    """Algorithm 1 of Frantar et al. 2023 with asymmetric groups as long as the block, one column at a time."""
    upper, top = _inverse_factor(weight, gram, damp), 2**bits - 1
    for start in range(0, weight.shape[1], block):
        end = min(start + block, weight.shape[1])
        errors = torch.zeros_like(weight[:, start:end])
        for j in range(start, end):
            if j % group == 0:
                part = weight[:, j : j + group]
                low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
                scale = (high - low).clamp(min=1e-12) / top
                zero = torch.round(-low / scale)
            value = scale * ((torch.round(weight[:, j] / scale) + zero).clamp(0, top) - zero)
            errors[:, j - start] = (weight[:, j] - value) / upper[j, j]
            weight[:, j] = value
            weight[:, j + 1 : end] -= errors[:, j - start, None] * upper[j, j + 1 : end]
        weight[:, end:] -= errors @ upper[start:end, end:]
    return weight
