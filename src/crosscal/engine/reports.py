"""What a compression tells of itself, layer by layer."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    `losses` gives for each text source tr(dW G dW^T) / n, the squared output error per token; `relative_error` is the
    mixed loss over the mixed output tr(W G W^T) / n, or None when losses were not measured. `facts` holds what the
    method tells: the damping that was needed, the rank, AWQ's exponent. `statistics` identifies the inputs seen: for
    each source 16 hex digits of SHA-256 over the diagonal of the Gram matrix, empty where no text ran.
    """

    name: str
    sparsity: float
    relative_error: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)

    @property
    def damp(self) -> float | None:
        """The damping that a second-order solver needed."""
        return self.facts.get("damp")


@dataclass
class CompressionReport:
    """The layers in order, the seconds it took and the highest memory use above the start, in bytes."""

    layers: list[LayerReport] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def sparsity(self) -> float:
        """Mean sparsity over layers, unweighted."""
        return sum(layer.sparsity for layer in self.layers) / max(1, len(self.layers))
