"""What compression cost: perplexity, divergence from the dense model, and task outcomes.

Names load when first used, so that the list of tasks can be read on a machine without torch.
"""

from importlib import import_module

_HOME = {
    "js_divergence": "divergence",
    "kl_divergence": "divergence",
    "top1_agreement": "divergence",
    "perplexity": "text_scores",
    "score_answers": "writing",
    "token_nll": "text_scores",
}

__all__ = ["js_divergence", "kl_divergence", "perplexity", "score_answers", "token_nll", "top1_agreement"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'crosscal.metrics' has no attribute '{name}'")
    return getattr(import_module(f"crosscal.metrics.{_HOME[name]}"), name)
