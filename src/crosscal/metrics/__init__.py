"""What compression cost: perplexity, divergence from the dense model, and task outcomes."""

from crosscal.metrics.divergence import js_divergence, kl_divergence, top1_agreement
from crosscal.metrics.perplexity import perplexity, token_nll

__all__ = ["js_divergence", "kl_divergence", "perplexity", "token_nll", "top1_agreement"]
