"""The measures behind ``verify``: ours and PyTorch's numbers, each against float64.

Every function takes plain arrays or a loaded model and returns numbers; verify.py decides what is
run, and holds the bounds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxcoder.cache import KVCache, init_cache
from jaxcoder.generate import generate_chunks
from jaxcoder.model import GPTBigCode
from jaxcoder.reference import log_softmax
from jaxcoder.sampling import sampling_params

Array = np.ndarray


class Layered(NamedTuple):
    """What our model computed for one sequence, as float64 arrays."""

    logits: Array
    """[T, V]"""
    residuals: list[Array]
    """n_layer + 2 arrays [T, D]: the embedding, the stream after each block, the final norm."""


def forward(model: GPTBigCode, params: dict, tokens: Array) -> Layered:
    """Run `tokens` [T] through our model, with every residual recorded."""
    logits, residuals = _recorded(model, params, jnp.asarray(tokens, jnp.int32)[None])
    return Layered(_float64(logits[0]), [_float64(residual[0]) for residual in residuals])


@functools.partial(jax.jit, static_argnums=0)
def _recorded(model: GPTBigCode, params: dict, tokens: jax.Array) -> tuple[Any, list[Any]]:
    def is_recorded(module: Any, _method: str) -> bool:
        return len(module.path) == 1  # the model's own parts, not the parts of a block

    (logits, _), state = model.apply(
        {"params": params}, tokens, capture_intermediates=is_recorded, mutable=["intermediates"]
    )
    outputs = state["intermediates"]
    blocks = [outputs[f"h_{i}"]["__call__"][0][0] for i in range(model.config.n_layer)]
    return logits, [outputs["dropout"]["__call__"][0], *blocks, outputs["ln_f"]["__call__"][0]]


def _float64(array: Any) -> Array:
    return np.asarray(array, dtype=np.float64)


def rms(array: Array) -> float:
    """Root of the mean square over all axes."""
    return float(np.sqrt(np.mean(np.square(array))))


def mean_kl(truth_logits: Array, logits: Array) -> float:
    """Mean over positions of KL(truth ‖ other), in nats, of `truth_logits`, `logits` [T, V]."""
    truth = log_softmax(truth_logits)
    return float(np.mean(np.sum(np.exp(truth) * (truth - log_softmax(logits)), axis=-1)))


def product_error(multiply: Callable[[Array, Array], Any], width: int) -> float:
    """RMS error against float64 of a float32 product [512, width] x [width, 512] of normal numbers.

    Args:
      multiply: computes it, of two NumPy arrays.
      width: numbers that are summed for each of the product.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((512, width), (width, 512)))
    return rms(_float64(multiply(a, b)) - _float64(a) @ _float64(b))


def multiply(a: Array, b: Array) -> jax.Array:
    """``a @ b`` by XLA, both of two axes, with the model's precision in float32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class LayerRow(NamedTuple):
    """One row of the per-layer table: errors relative to the stream's own RMS."""

    name: str
    """"embedding", "block 0" and so on, "final norm"."""
    ours: float
    """Our RMS error against float64, over the RMS of the stream."""
    pytorch: float
    """PyTorch's."""


def layer_table(truth: Sequence[Array], ours: Sequence[Array], pytorch: Sequence[Array]) -> list:
    """A `LayerRow` for the embedding, each block, and the final norm.

    Args:
      truth: n_layer + 2 residuals [T, D] in float64, as `reference.forward` gives them.
      ours, pytorch: the same at the precision that is judged.
    """
    names = ["embedding", *(f"block {i}" for i in range(len(truth) - 2)), "final norm"]
    return [
        LayerRow(name, rms(a - t) / rms(t), rms(b - t) / rms(t))
        for name, t, a, b in zip(names, truth, ours, pytorch, strict=True)
    ]


def first_faulty(table: Sequence[LayerRow], *, factor: float = 10.0) -> str | None:
    """The first row of `table` where our error exceeds `factor` times PyTorch's, or None.

    Rounding grows smoothly with depth in both, a fault jumps in one, so that the first row that
    stands out names the place.
    """
    # The embedding is a sum of two numbers: often it has no error.
    exact = float(np.finfo(np.float32).eps) / 16
    return next((row.name for row in table if row.ours > factor * max(row.pytorch, exact)), None)


def greedy(
    model: GPTBigCode, params: dict, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """The ids, `new_tokens` of them, that our jitted decoding appends to each of the `prompts`.

    End-of-text does not end a text here.
    """
    chunks = generate_chunks(
        model,
        params,
        prompts,
        sampling_params(len(prompts)),
        max_new_tokens=new_tokens,
        eos_ids=(),
        stopped=np.zeros(len(prompts), bool),
    )
    tokens = np.concatenate([chunk.tokens for chunk in chunks], axis=1)
    return [[int(token) for token in row if token >= 0] for row in tokens]


def equal_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens of two continuations `a` and `b` of one length are equal."""
    pairs = zip(a, b, strict=True)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), len(a))


class Divergence(NamedTuple):
    """Where two greedy texts part, and whether float64 calls the two tokens equal."""

    prompt: int
    """The prompt's number."""
    position: int
    """Equal new tokens before."""
    ours: int
    """Our token."""
    pytorch: int
    """PyTorch's."""
    gap: float
    """|float64 logit of ours - of PyTorch's|."""
    error: float
    """The larger of the two float32 errors at this position."""

    @property
    def is_tie(self) -> bool:
        """Whether the gap is within what float32 can decide: 2 x error."""
        return self.gap < 2 * self.error


def explain_divergence(
    prompt_index: int,
    prompt: Sequence[int],
    ours: Sequence[int],
    pytorch: Sequence[int],
    *,
    truth: Callable[[Array], Array],
    float32_logits: Sequence[Callable[[Array], Array]],
) -> Divergence | None:
    """The first difference of two continuations; None if there is none.

    Args:
      prompt_index, prompt: the prompt, and its number for the report.
      ours, pytorch: the two continuations.
      truth: ids [T] -> float64 logits [V] of the next token.
      float32_logits: the same in float32, by us and by PyTorch.
    """
    position = equal_prefix(ours, pytorch)
    if position == len(ours):
        return None
    context = np.array([*prompt, *ours[:position]])
    exact = truth(context)
    error = max(float(np.abs(logits(context) - exact).max()) for logits in float32_logits)
    gap = float(abs(exact[ours[position]] - exact[pytorch[position]]))
    return Divergence(prompt_index, position, ours[position], pytorch[position], gap, error)


@functools.partial(jax.jit, static_argnums=0)
def _cached(
    model: GPTBigCode, params: dict, tokens: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    result = model.apply({"params": params}, tokens, cache=cache)
    return cast(tuple[jax.Array, KVCache], result)


def cache_error(model: GPTBigCode, params: dict, tokens: Array, pieces: Sequence[int]) -> float:
    """Largest |cached - uncached| logit of `tokens` [T], fed in pieces of each given size.

    After the last size half of the tokens are rolled back and fed again.
    """
    expected = forward(model, params, tokens).logits
    worst = 0.0

    def feed(cache: KVCache, start: int, piece: int) -> KVCache:
        nonlocal worst
        for at in range(start, len(tokens), piece):
            new = jnp.asarray(tokens[at : at + piece], jnp.int32)[None]
            logits, cache = _cached(model, params, new, cache)
            got = _float64(logits[0])
            worst = max(worst, float(np.abs(got - expected[at : at + piece]).max()))
        return cache

    def feed_all(piece: int) -> KVCache:
        return feed(init_cache(model.config, 1, len(tokens), model.dtype), 0, piece)

    *others, last = pieces
    for piece in others:
        feed_all(piece)
    cache = feed_all(last)
    # A whole number of the last pieces, so that no further program is compiled.
    half = len(tokens) // (2 * last) * last
    feed(cache._replace(lengths=jnp.full((1,), half, jnp.int32)), half, last)
    return worst
