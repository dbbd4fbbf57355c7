"""Looking inside a model: activations captured or replaced, the logit lens, the loss of each token.

    from jaxcoder import Generator, inspect

    generator = Generator.from_pretrained()
    tokens = [generator.tokenizer.encode("def add(a, b):\\n    return a")]
    run = inspect.run(generator, tokens, capture=["h.0.attn.pattern", "h.*"])
    again = inspect.run(generator, tokens, patch={"h.1": run.activations["h.1"]})
    lens = inspect.logit_lens(generator, tokens)
    print(inspect.to_terminal(inspect.token_losses(generator, "x = 1\\n")))

What runs is compiled; `activations.forward` is the same as a pure function, to be jitted into
yours or differentiated.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from . import activations
from .arguments import check_count, check_token_rows
from .config import ModelConfig
from .generate import check_request
from .generator import Generator
from .loss_views import to_html, to_terminal
from .model import GPTBigCode
from .token_losses import TokenLosses, token_losses

__all__ = [
    "Run",
    "TokenLosses",
    "logit_lens",
    "names",
    "run",
    "to_html",
    "to_terminal",
    "token_losses",
]

Array = jax.Array
Tokens = np.ndarray | Sequence[Sequence[int]]


class Run(NamedTuple):
    """What one forward pass gave."""

    logits: Array
    """float32 [B, T, V]"""
    activations: dict[str, Array]
    """Name -> float32, in the shape that `activations.shapes` gives: a stream is [B, T, D]."""


def names(config: ModelConfig) -> tuple[str, ...]:
    """Every name that `run` takes, in the order in which they are computed.

    What each is, and its shape: `activations.shapes`.
    """
    return tuple(activations.shapes(config, 1, 1))


def run(
    generator: Generator,
    tokens: Tokens,
    *,
    capture: Sequence[str] = (),
    patch: Mapping[str, Array | np.ndarray] | None = None,
) -> Run:
    """One uncached forward pass that keeps activations, or computes on with others in their place.

    The logits are those of `Generator.logits` up to rounding: the attention pattern is computed as
    a whole here. Between two calls of `run` that differ in what they capture no bit differs.

    Args:
      generator: the model.
      tokens: ids [B, T], rows of one length, T ≤ n_positions; not text, of which an activation
        could not be told to belong to a token.
      capture: names to keep, see `names`; ``*`` stands for every layer, as in "h.*.attn.pattern".
        A string by itself is one name.
      patch: name -> array in the activation's shape, for the names of `names`; the arrays of a
        run, changed or of another prompt, are made for it.

    Raises:
      ValueError: ids or a name that the model has not, or a patch of another shape.
    """
    ids = _ids(generator, tokens)
    return Run(
        *activations.forward(generator.model, generator.params, ids, capture=capture, patch=patch)
    )


def logit_lens(
    generator: Generator, tokens: Tokens, *, positions: Sequence[int] | None = None
) -> Array:
    """What each layer's stream would predict: final norm and output head applied to it.

    Args:
      generator: the model.
      tokens: ids [B, T] as in `run`.
      positions: which of the T positions, -1 the last; by default all. All layers' logits are
        large: 164M parameters, 1,024 tokens, 4.2 GB.

    Returns:
      float32 [L + 1, B, T, V], T the chosen positions: of the embedding, then of the stream after
      each of the L blocks. The last of them are the model's logits.

    Raises:
      ValueError: as `run`, or a position outside of the tokens.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
    """
    ids = _ids(generator, tokens)
    length = ids.shape[1]
    chosen = range(length) if positions is None else positions
    for position in chosen:
        if check_count("position", position, least=-length) >= length:
            raise ValueError(f"position is {position}, but there are {length} tokens")
    places = np.arange(length)[list(chosen)]
    return _lens(generator.model, generator.params, ids, places)


@functools.partial(jax.jit, static_argnums=0)
def _lens(model: GPTBigCode, params: dict, tokens: Array, places: Array) -> Array:
    """float32 [L + 1, B, P, V] at `places` [P] of tokens [B, T]."""

    def read_out(module: GPTBigCode, x: Array) -> Array:
        return module.unembed(module.ln_f(x))

    # The logits of all positions, which nothing here reads, are not computed.
    _, streams = activations.forward(model, params, tokens, capture=["embed", "h.*"])
    chosen = jnp.concatenate([stream[:, places] for stream in streams.values()])
    lens = cast(Array, model.apply({"params": params}, chosen, method=read_out))
    return lens.reshape(len(streams), len(tokens), len(places), model.config.vocab_size)


def _ids(generator: Generator, tokens: Tokens) -> Array:
    if isinstance(tokens, str):
        raise ValueError("tokens is str, expected ids [B, T]: [generator.tokenizer.encode(text)]")
    rows, _ = check_token_rows(tokens, None, generator.config)
    check_request(generator.config, [list(row) for row in rows], 0)
    return jnp.asarray(rows.astype(np.int32))
