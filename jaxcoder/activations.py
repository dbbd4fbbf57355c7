"""The forward pass with its intermediate results by name: captured, or replaced by others.

The model's files know nothing of it: Flax lets a function stand between a module and its caller
(`flax.linen.intercept_methods`), which here sees every module's output while JAX traces the model.

Letters as in layers.py. Attention is computed here once more, score by score, because the model's
own never holds a whole pattern: [B, N, T, T] a layer, one layer at a time.

Source of the ideas: activation patching, Vig et al. arXiv:2004.12265; names after the checkpoint's.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .cache import keys_and_values
from .config import ModelConfig
from .model import GPTBigCode
from .products import product

Array = jax.Array


def shapes(config: ModelConfig, batch: int, length: int) -> dict[str, tuple[int, ...]]:
    """Every activation's name and shape, in the order in which they are computed.

    ========================  ============  ==================================================
    name                      shape         what it is, float32
    ========================  ============  ==================================================
    embed                     [B, T, D]     the stream before the first block
    h.0.ln_1                  [B, T, D]     what attention reads
    h.0.attn.q, .k, .v        [B, T, N or   queries; keys and values, K = 1 with multi-query
                              K, H]         attention
    h.0.attn.pattern          [B, N, T, S]  the softmax, S = T; each row sums to 1
    h.0.attn.mixed            [B, T, N·H]   values weighed by the pattern, head after head
    h.0.attn                  [B, T, D]     what attention adds to the stream
    h.0.ln_2                  [B, T, D]     what the MLP reads
    h.0.mlp.inner             [B, T, F]     after GELU
    h.0.mlp                   [B, T, D]     what the MLP adds to the stream
    h.0                       [B, T, D]     the stream after the block
    ln_f                      [B, T, D]     the stream after the final norm
    logits                    [B, T, V]     of the next token
    ========================  ============  ==================================================
    """
    heads, kv_heads, head_dim = config.n_head, config.n_kv_head, config.head_dim
    stream = (batch, length, config.n_embd)
    found: dict[str, tuple[int, ...]] = {"embed": stream}
    for layer in range(config.n_layer):
        block = f"h.{layer}"
        found |= {
            f"{block}.ln_1": stream,
            f"{block}.attn.q": (batch, length, heads, head_dim),
            f"{block}.attn.k": (batch, length, kv_heads, head_dim),
            f"{block}.attn.v": (batch, length, kv_heads, head_dim),
            f"{block}.attn.pattern": (batch, heads, length, length),
            f"{block}.attn.mixed": (batch, length, heads * head_dim),
            f"{block}.attn": stream,
            f"{block}.ln_2": stream,
            f"{block}.mlp.inner": (batch, length, config.n_inner),
            f"{block}.mlp": stream,
            block: stream,
        }
    return found | {"ln_f": stream, "logits": (batch, length, config.vocab_size)}


def matching(pattern: str, config: ModelConfig) -> list[str]:
    """The names that `pattern` means: one, or one a layer where a ``*`` stands for its number.

    Raises:
      ValueError: it means none.
    """
    expression = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
    found = [name for name in shapes(config, 1, 1) if expression.fullmatch(name)]
    if not found:
        raise ValueError(
            f"no activation is called {pattern!r}; expected a name such as "
            "'embed', 'h.0', 'h.0.attn.pattern', 'h.*.mlp' or 'logits', with layers from 0 to "
            f"{config.n_layer - 1}; jaxcoder.inspect.names(config) lists them"
        )
    return found


def forward(
    model: GPTBigCode,
    params: dict,
    tokens: Array,
    *,
    capture: Sequence[str] = (),
    patch: Mapping[str, ArrayLike] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The model's logits, and activations on the way.

    A pure function, compiled once for a shape, a `capture` and the names in `patch`. It goes into a
    jit or vmap of yours, and can be differentiated in `params` and `patch`.

    What is captured, or patched with itself, changes no bit of the rest. In your jit that holds
    where `tokens` is an argument of it; where it is a constant, or what vmap maps over, the
    compiler may fuse across activations, and results are equal up to rounding only.

    Args:
      model, params: as the generator has them; the model's `remat` is not heeded.
      tokens: int32 [B, T]; the ids, unknown while it is traced, are not checked.
      capture: names of `shapes`; ``*`` stands for every layer, as in "h.*.attn.pattern". A string
        by itself is one name.
      patch: name -> what takes the activation's place, in its shape.

    Returns:
      (logits float32 [B, T, V], captured name -> float32; where patched, the patch).

    Raises:
      ValueError: a name that the model has not, or tokens or a patch of another shape.
    """
    config = model.config
    if tokens.ndim != 2 or tokens.size == 0 or tokens.shape[1] > config.n_positions:
        raise ValueError(
            f"tokens has shape {list(tokens.shape)}, expected [B, T] with T from 1 to the model's "
            f"{config.n_positions} positions; a single row is tokens[None]"
        )
    wanted = [capture] if isinstance(capture, str) else capture
    found = tuple(dict.fromkeys(name for asked in wanted for name in matching(asked, config)))
    patches = _patches(patch or {}, shapes(config, *tokens.shape))
    # With remat a block is traced by itself, and nothing could be taken out of it.
    logits, captured = _forward(model.clone(remat=False), params, tokens, found, patches)
    return logits, {name: captured[name] for name in found}


def _patches(
    patch: Mapping[str, ArrayLike], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    patches = {name: jnp.asarray(value, jnp.float32) for name, value in patch.items()}
    for name, value in patches.items():
        if name not in shapes:
            raise ValueError(
                f"patch: no activation is called {name!r}; expected one of "
                "jaxcoder.inspect.names(config), without a star"
            )
        if value.shape != shapes[name]:
            raise ValueError(
                f"patch: {name!r} has shape {list(value.shape)}, expected "
                f"{list(shapes[name])} for these tokens"
            )
    return patches


@functools.partial(jax.jit, static_argnums=(0, 3))
def _forward(
    model: GPTBigCode,
    params: dict,
    tokens: Array,
    capture: tuple[str, ...],
    patch: dict[str, Array],
) -> tuple[Array, dict[str, Array]]:
    """`forward` of what has been checked."""
    tap = _Tap(model, capture, patch, never=tokens[0, 0] < 0)
    with nn.intercept_methods(tap.intercept):
        logits, _ = model.apply({"params": params}, tokens)
    return tap("logits", logits), tap.captured


class _Tap:
    """Where activations are taken out and put in, during one trace."""

    def __init__(
        self,
        model: GPTBigCode,
        capture: tuple[str, ...],
        patch: Mapping[str, Array],
        *,
        never: Array,
    ) -> None:
        self._model, self._capture, self._patch = model, capture, patch
        self._never = never  # false, which the compiler cannot know
        self._names = shapes(model.config, 1, 1).keys()
        self._seen: dict[str, Array] = {}  # of this layer's attention: q, k, v
        self.captured: dict[str, Array] = {}

    def __call__(self, name: str, x: Array) -> Array:
        """`x`, or what was given in its place."""
        x = self._fenced(self._patch.get(name, x).astype(jnp.float32))
        if name in self._capture:
            self.captured[name] = x
        return x

    def _fenced(self, x: Array) -> Array:
        """`x`, over which XLA fuses nothing, so that its bits do not depend on who reads it.

        `lax.optimization_barrier` is no fence to the CPU backend of jax 0.7.2.
        """
        return lax.cond(self._never, jnp.zeros_like, lambda x: x, x)

    def intercept(
        self,
        module: Callable[..., Any],
        arguments: tuple[Any, ...],
        named_arguments: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Called by Flax in place of each method of each module; `module` goes on to it."""
        if context.method_name != "__call__":
            return module(*arguments, **named_arguments)
        name = _name(context.module.path)
        block, _, part = name.removeprefix("h.").partition(".")
        if part == "attn.c_proj":
            arguments = (self(f"h.{block}.attn.mixed", self._mixed(int(block))),)
        elif part == "ln_2":  # the stream between attention and MLP is no module's output
            arguments = (self._fenced(arguments[0]),)
        elif part == "mlp.c_proj":
            arguments = (self(f"h.{block}.mlp.inner", arguments[0]),)
        out = module(*arguments, **named_arguments)
        if part == "attn.q":
            return self._query(name, out)
        if part == "attn.kv":
            return self._keys_and_values(f"h.{block}.attn", out)
        if name not in self._names:
            return out
        if isinstance(out, tuple):  # beside it the cache's buffer, None here
            return self(name, out[0]), *out[1:]
        return self(name, out)

    def _query(self, name: str, q: Array) -> Array:
        """q as the module gives it, [B, T, N·H]."""
        config = self._model.config
        self._seen["q"] = self(name, q.reshape(*q.shape[:2], config.n_head, config.head_dim))
        return self._seen["q"].reshape(q.shape)

    def _keys_and_values(self, attention: str, kv: Array) -> Array:
        """kv as the module gives it, [B, T, K·2H]."""
        by_head = kv.reshape(*kv.shape[:2], self._model.config.n_kv_head, -1)
        for letter, half in zip("kv", keys_and_values(by_head), strict=True):
            self._seen[letter] = self(f"{attention}.{letter}", half)
        return jnp.concatenate([self._seen["k"], self._seen["v"]], axis=-1).reshape(kv.shape)

    def _mixed(self, layer: int) -> Array:
        """The values weighed by the pattern, [B, T, N·H]; what the model itself mixed is dropped.

        Always, asked for or not: the model divides after the product, so its last bits differ.
        """
        q, k, v = (self._seen[letter] for letter in "qkv")
        config, dtype = self._model.config, self._model.dtype
        batch, length, n_head, head_dim = q.shape
        grouped = q.reshape(batch, length, k.shape[2], -1, head_dim)
        scaled = grouped * config.attention_scale(layer)
        scores = product("btkgh,bskh->bkgts", scaled, k, dtype)
        is_visible = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(is_visible[None, None, None], scores, -jnp.inf)
        pattern = jax.nn.softmax(scores, axis=-1).reshape(batch, n_head, length, length)
        pattern = self(f"h.{layer}.attn.pattern", pattern).reshape(scores.shape)
        mixed = product("bkgts,bskh->btkgh", pattern, v, dtype)
        return mixed.reshape(batch, length, -1)


def _name(path: tuple[str, ...]) -> str:
    """A module's name here: of ("h_0", "attn", "q") "h.0.attn.q"."""
    # Dropout over the embeddings is the one module that the whole of them goes through.
    return "embed" if path == ("dropout",) else ".".join(path).replace("h_", "h.", 1)
