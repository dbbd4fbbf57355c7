"""Tiny configs of every variant the model has, random weights for them, and what they compute.

Weights are far larger than a fresh model's, so that logits spread over several units and a wrong
layout, scale or activation shows in them. Values are float32, which the float64 reference takes
over exactly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcoder import reference
from jaxcoder.cache import KVCache
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf, tensor_shapes
from jaxcoder.model import GPTBigCode

VOCAB_SIZE = 61

# The second layer shows scaling by layer; n_inner is not 4 * n_embd; 3 heads of 8.
MQA = ModelConfig(
    vocab_size=VOCAB_SIZE,
    n_positions=64,
    n_embd=24,
    n_layer=2,
    n_head=3,
    n_inner=40,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)
MHA = dataclasses.replace(MQA, multi_query=False)
GPT2 = dataclasses.replace(MHA, model_type="gpt2", activation_function="gelu_new")

CASES = {
    "mqa": MQA,
    "mqa-gelu": dataclasses.replace(MQA, activation_function="gelu"),
    "mqa-gelu-new": dataclasses.replace(MQA, activation_function="gelu_new"),
    "mqa-gelu-fast": dataclasses.replace(MQA, activation_function="gelu_fast"),
    "mqa-epsilon": dataclasses.replace(MQA, layer_norm_epsilon=1e-3),
    "mqa-untied": dataclasses.replace(MQA, tie_word_embeddings=False),
    "mqa-unscaled": dataclasses.replace(MQA, scale_attn_weights=False),
    "mha": MHA,
    "mha-gelu": dataclasses.replace(MHA, activation_function="gelu"),
    "mha-untied": dataclasses.replace(MHA, tie_word_embeddings=False),
    "gpt2": GPT2,
    "gpt2-by-layer": dataclasses.replace(GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt2-unscaled": dataclasses.replace(GPT2, scale_attn_weights=False),
}


def random_tensors(config: ModelConfig, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Canonical Hugging Face tensors, float32, with logits of standard deviation above 1."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape) * (0.3 if len(shape) == 2 else 0.2)
        if ".ln_" in name and name.endswith("weight"):
            values += 1.0
        tensors[name] = values.astype(np.float32)
    return tensors


def random_params(config: ModelConfig, *, seed: int = 0) -> dict:
    """The parameter tree of `random_tensors`, as JAX arrays."""
    return to_jax(params_from_hf(random_tensors(config, seed=seed), config))


def to_jax(tree: dict) -> dict:
    """The same nested dict with JAX arrays for its NumPy leaves."""
    return {
        name: to_jax(leaf) if isinstance(leaf, dict) else jnp.asarray(leaf)
        for name, leaf in tree.items()
    }


def random_tokens(*shape: int, seed: int = 1, vocab_size: int = VOCAB_SIZE) -> np.ndarray:
    """Ids of any shape, int32."""
    return np.random.default_rng(seed).integers(0, vocab_size, shape, dtype=np.int32)


@functools.partial(jax.jit, static_argnums=0)
def forward(model: GPTBigCode, params: dict, arguments: dict) -> tuple[jax.Array, KVCache | None]:
    """`model.apply` with `arguments` by name, compiled: much faster than step by step."""
    return model.apply({"params": params}, **arguments)


def full_logits(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of tokens [B, T] by one float32 forward without a cache."""
    return np.asarray(forward(GPTBigCode(config), params, {"tokens": tokens})[0])


def reference_logits(config: ModelConfig, tokens: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Float64 logits [T, V] of tokens [T] with `random_tensors`."""
    return reference.forward(random_tensors(config, seed=seed), config, tokens).logits
