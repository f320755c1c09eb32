"""What is known of model families by name; all else is found by structure.

A new family needs an entry here when it keeps a stack of matrices in a parameter without saying in which layout, calls
a router or a tower by a new name, or has parameters that look like matrices and are none.
"""

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

# Parts of a model beside the text decoder, by a component of their path.
_TOWER = re.compile(r"vision|visual|image|img|audio|speech|video|codec|multi_?modal|(^|_)mm_", re.IGNORECASE)
_CROSS = re.compile(r"cross_?attn|cross_?attention|encoder_attn|(^|_)inter_attention", re.IGNORECASE)
_CROSS_OF_TEXT = {"BltCrossAttention"}  # between bytes and patches of the same text
_ADAPTER = re.compile(r"^lora_|^modules_to_save$")
# Parts of a block that are no matrix multiplied with a token's features.
_STATE = re.compile(r"^(A_log|A|D|dt_\w+)$|conv|rglru|rg_lru|time_(mix|decay|first|maa|faaaa)|recurrent", re.IGNORECASE)
_ELEMENTWISE = re.compile(r"bias|norm|scale|sink|position|temperature", re.IGNORECASE)
_ROUTER = re.compile(r"Router|(TopK|Switch|MoE|Moe)Gat(e|ing)$")  # of a class
_HEAD = re.compile(r"(^|\.)(lm_head|cls|head|predictions|generator_predictions|pooler|altup_unembed_projections)(\.|$)")
_EMBEDS = re.compile(r"(^|\.)(altup_projections|per_layer_model_projection)(\.|$)")  # between embedding and blocks
_GATES = {"router", "gate", "wg", "gate_logits", "shared_expert_gate", "shared_gate", "switch", "classifier"}

# Stacks of matrices whose class does not say in `is_transposed` whether they are stored [..., in, out]. The number of
# matrices is the first size of a parameter of three dimensions, else in an attribute.
_STACKS: dict[str, dict[str, bool]] = {
    "Llama4TextExperts": {"gate_up_proj": True, "down_proj": True},
    "GptOssExperts": {"gate_up_proj": True, "down_proj": True},
    "LongcatFlashExperts": {"gate_up_proj": False, "down_proj": False},
    "JetMoeParallelExperts": {"weight": False},
    "GraniteMoeParallelExperts": {"weight": False},
    "InklingSharedExperts": {"gate_proj": False, "up_proj": False, "down_proj": False},
    "DbrxExpertGLU": {"w1": False, "v1": False, "w2": True},
    "DeepseekV4GroupedLinear": {"weight": False},
    "RecurrentGemmaRglru": {"input_gate_weight": True, "recurrent_gate_weight": True},
}
_COUNTS = ("moe_num_experts", "n_groups")


def _stack_layout(owner: nn.Module, leaf: str) -> tuple[int, bool] | None:
    """Return the number of matrices that a parameter stacks and whether each is stored [in, out]; None for no stack.

    A class that transformers does not know is judged by its shapes: the matrices of an expert must fit to each other.
    """
    parameter, kind = owner._parameters[leaf], type(owner).__name__
    known = _STACKS.get(kind, {})
    if leaf in known:
        count = next((getattr(owner, name) for name in _COUNTS if hasattr(owner, name)), None)
        return (len(parameter) if parameter.ndim == 3 else count), known[leaf]
    if parameter.ndim != 3 or min(parameter.shape[1:]) == 1 or isinstance(owner, nn.modules.conv._ConvNd):
        return None
    if isinstance(flag := getattr(owner, "is_transposed", None), bool):
        return len(parameter), flag
    if "expert" not in kind.lower() and "moe" not in kind.lower():
        return None
    stacks = [stack.shape[1:] for stack in owner._parameters.values() if stack is not None and stack.ndim == 3]
    width = getattr(owner, "hidden_size", None) or getattr(owner, "hidden_dim", None) or _common_width(stacks)
    rows, columns = parameter.shape[1:]
    if width not in (rows, columns) or rows == columns:
        return None
    reads_hidden = not re.search(r"down|w2|w_2|out", leaf)
    return len(parameter), (rows == width) == reads_hidden


def _common_width(shapes: list) -> int | None:
    """Return the one size that all matrices of an expert have: the width of the hidden states."""
    common = set.intersection(*(set(shape) for shape in shapes)) if len(shapes) > 1 else set()
    return common.pop() if len(common) == 1 else None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _is_cross(block: nn.Module, path: list[str]) -> bool:
    """Return whether a matrix of a block attends to something else than the text."""
    kind = type(block).__name__
    return kind not in _CROSS_OF_TEXT and any(map(_CROSS.search, [*path, kind]))


def _is_router(owners: list[nn.Module], path: list[str], rows: int, share: float) -> bool:
    """Return whether a matrix routes tokens or gates an expert: `owners` are the modules along its path in a block.

    A gate is known by its name beside experts, by a single output, or by taking less than 0.1 % of its block.
    """
    if any(_ROUTER.search(type(owner).__name__) for owner in owners[1:]):
        return True
    for owner, name in zip(owners, path, strict=False):
        if name in _GATES and (rows == 1 or share < 0.001 or _has_experts(owner)):
            return True
    return False


def _has_experts(owner: nn.Module) -> bool:
    return any("expert" in name or "expert" in type(child).__name__.lower() for name, child in owner.named_children())


def _reason(owner: nn.Module, path: list[str]) -> str:
    """Return why a parameter with at least two dimensions is no linear layer; empty for an elementwise one.

    `path` is its name in the block, split at the dots.
    """
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if isinstance(owner, nn.modules.conv._ConvNd) or any(map(_STATE.search, [*path, type(owner).__name__])):
        return "recurrent or convolution state"
    if _ELEMENTWISE.search(path[-1]) or "norm" in type(owner).__name__.lower():
        return ""
    return "cannot be expressed as a linear layer"
