"""`GPTBigCode`: embed -> blocks -> logits, purely functional.

Parameters, cache and dropout key go in; logits and cache come out. The module is hashable, so it
is a static argument of the jitted functions that call it (see generate.py).

Source: transformers, ``GPTBigCodeForCausalLM``; SantaCoder arXiv:2301.03988 (multi-query, FIM).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .cache import KVCache
from .config import ModelConfig
from .layers import Block, LayerNorm
from .products import FLOAT32, weight_product

Array = jax.Array


class Embedding(nn.Module):
    """A table [rows, D]; as `weight` it is also the tied output head.

    `width` is D; `init_std` the standard deviation of a fresh entry.
    """

    rows: int
    width: int
    init_std: float
    param_dtype: jnp.dtype

    def setup(self) -> None:
        normal = nn.initializers.normal(self.init_std)
        self.weight = self.param("weight", normal, (self.rows, self.width), self.param_dtype)

    def __call__(self, ids: Array) -> Array:
        """ids int32 [...] -> float32 [..., D]. Padding beyond the table reads its last row."""
        return jnp.take(self.weight, ids, axis=0, mode="clip").astype(jnp.float32)


class GPTBigCode(nn.Module):
    """The language model.

    Args:
      config: sizes and choices.
      dtype: of the operands of products, float32 or bfloat16 (see layers.py for the rules).
      param_dtype: of fresh parameters; loaded ones bring their own.
      remat: compute each block again in the backward pass instead of keeping what it computed.
    """

    config: ModelConfig
    dtype: jnp.dtype = FLOAT32
    param_dtype: jnp.dtype = FLOAT32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        std, width = config.initializer_range, config.n_embd
        self.wte = Embedding(config.vocab_size, width, std, self.param_dtype)
        self.wpe = Embedding(config.n_positions, width, std, self.param_dtype)
        self.h = [
            Block(config, layer, self.dtype, self.param_dtype) for layer in range(config.n_layer)
        ]
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.param_dtype)
        self.dropout = nn.Dropout(config.embd_pdrop)
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(config.vocab_size, width, std, self.param_dtype)

    def __call__(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        cache: KVCache | None = None,
        train: bool = False,
    ) -> tuple[Array, KVCache | None]:
        """Next-token logits at every position.

        Args:
          tokens: int32 [B, T]. Ids and lengths are checked on the host: JAX clamps silently.
          positions: int32 [B, T], by default 0..T-1, or from each row's cached length on.
          segment_ids: int32 [B, T] for packed documents, which then do not see each other; not
            together with a cache.
          cache: the tokens before; T ≥ 1 new ones are appended at each row's own length.
          train: dropout on; needs a key named "dropout"; not together with a cache.

        Returns:
          (logits float32 [B, T, V], cache with lengths + T, or None without a cache).
        """
        x, cache = self.features(
            tokens, positions=positions, segment_ids=segment_ids, cache=cache, train=train
        )
        return self.unembed(x), cache

    def features(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        cache: KVCache | None = None,
        train: bool = False,
    ) -> tuple[Array, KVCache | None]:
        """The stream after the final norm, float32 [B, T, D], and the cache.

        Args:
          tokens, positions, segment_ids, cache, train: as in `__call__`.

        Raises:
          ValueError: a cache together with segment_ids or with train.
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids and cache were both given; a cache holds one segment")
        if cache is not None and train:
            raise ValueError("train and a cache were both given; a cache is for decoding")
        start = jnp.zeros((tokens.shape[0],), jnp.int32) if cache is None else cache.lengths
        q_slots = start[:, None] + jnp.arange(tokens.shape[1])[None, :]
        x = self.wte(tokens) + self.wpe(q_slots if positions is None else positions)
        x = self.dropout(x, deterministic=not train)
        buffers: list[Array] = []

        def run(block: Block, x: Array, buffer: Array | None) -> tuple[Array, Array | None]:
            return block(x, q_slots=q_slots, segment_ids=segment_ids, buffer=buffer, train=train)

        run = nn.remat(run) if self.remat else run
        for i, block in enumerate(self.h):
            x, buffer = run(block, x, None if cache is None else cache.layers[i])
            if buffer is not None:
                buffers.append(buffer)
        if cache is not None:
            cache = KVCache(tuple(buffers), cache.lengths + tokens.shape[1])
        return self.ln_f(x), cache

    def unembed(self, x: Array) -> Array:
        """Features x [..., D] -> logits float32 [..., V], by the tied or the separate head."""
        head = self.wte if self.config.tie_word_embeddings else self.lm_head
        return weight_product(x, head.weight, self.dtype)


def init_params(model: GPTBigCode, key: Array) -> dict:
    """Fresh parameters, GPT-2's initialisation: normal weights, c_proj scaled by 1/sqrt(2L).

    Shapes, [out, in], are those of hf_names.py; the dtype is the model's `param_dtype`.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(model.init)(key, tokens)["params"]
