"""What ``jaxcoder info`` says of a checkpoint: sizes, dtype, memory."""

import math
from typing import Any

import jax

from .arguments import check_count
from .cache import cache_bytes, capacity_bucket
from .generator import Generator


def describe(generator: Generator, *, context: int | None = None) -> dict[str, Any]:
    """Facts of a loaded model; memory in bytes, the cache's for one row of `context` tokens.

    Raises:
      ValueError: a context that is no integer or outside 1 to n_positions.
    """
    config = generator.config
    tokens = config.n_positions if context is None else check_count("context", context, least=1)
    if tokens > config.n_positions:
        raise ValueError(f"context is {tokens}, expected 1 to {config.n_positions} tokens")
    leaves = jax.tree.leaves(generator.params)
    capacity = capacity_bucket(tokens, config.n_positions)
    dtype = generator.model.dtype
    return {
        "model_type": config.model_type,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_kv_head": config.n_kv_head,
        "head_dim": config.head_dim,
        "n_inner": config.n_inner,
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "activation_function": config.activation_function,
        "tie_word_embeddings": config.tie_word_embeddings,
        "parameters": sum(math.prod(leaf.shape) for leaf in leaves),
        "device": str(jax.devices()[0]),
        "dtype": dtype.name,
        "parameter_bytes": sum(leaf.nbytes for leaf in leaves),
        "context": tokens,
        "cache_bytes": cache_bytes(config, capacity, dtype),
    }


def format_description(description: dict[str, Any]) -> str:
    """The same for people: one aligned line per fact."""

    def shown(name: str, value: Any) -> str:
        if name.endswith("_bytes"):
            return f"{value / 1e6:,.1f} MB"
        return f"{value:,}" if type(value) is int else str(value)

    width = max(len(name) for name in description)
    return "\n".join(f"{name:<{width}}  {shown(name, v)}" for name, v in description.items())
