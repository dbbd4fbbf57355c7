"""How surprised a model is by each token of a text: its loss in nats, token by token."""

import codecs
import functools
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .generate import length_bucket
from .generator import Generator
from .model import GPTBigCode

Array = jax.Array

# Tokens whose logits are held at once, float32 [BLOCK, V].
BLOCK = 32


class TokenLosses(NamedTuple):
    """A text's tokens and the loss of each."""

    tokens: list[int]
    """Ids [T]."""
    texts: list[str]
    """The characters that each token ends, which joined are the text; "" for a token that ends
    amid one."""
    losses: np.ndarray
    """float32 [T], -ln p(token | tokens before) in nats; NaN for the first, which nothing
    predicts."""
    predicted_bytes: int
    """Bytes, in UTF-8, of all tokens but the first. They are not those of texts[1:]: a first token
    that ends amid a character has some of its bytes there."""

    @property
    def total(self) -> float:
        """The sum over all tokens but the first, in nats."""
        return float(np.nansum(self.losses, dtype=np.float64))

    @property
    def bits_per_byte(self) -> float:
        """`total` in bits over `predicted_bytes`; NaN where there are none."""
        size = self.predicted_bytes
        return self.total / math.log(2) / size if size else math.nan


def token_losses(generator: Generator, text: str) -> TokenLosses:
    """The loss of each token of `text`, given those before it.

    A text longer than the model's n_positions is read in windows that overlap by half: each token
    is counted once, with at least half a window before it.

    Args:
      generator: the model.
      text: plain text, at least one token; what looks like a special token is none.

    Raises:
      ValueError: not a str, or empty.
    """
    if not isinstance(text, str) or not text:
        got = "empty" if text == "" else type(text).__name__
        raise ValueError(f"text is {got}, expected a str of at least one character")
    ids = generator.tokenizer.encode(text)
    losses = np.full(len(ids), np.nan, np.float32)
    window = generator.config.n_positions
    start = 0
    while start == 0 or start + window // 2 < len(ids):
        piece = ids[start : start + window]
        known = max(1, window // 2 if start else 1)
        found = _window_losses(generator, piece)
        losses[start + known : start + len(piece)] = found[known - 1 : len(piece) - 1]
        start += window - window // 2
    pieces = [generator.tokenizer.token_bytes(token) for token in ids]
    return TokenLosses(ids, _texts(pieces), losses, sum(map(len, pieces[1:])))


def _window_losses(generator: Generator, ids: list[int]) -> np.ndarray:
    """Losses [T - 1] of the second to the last of ids [T], in one forward pass."""
    bucket = length_bucket(len(ids))  # a multiple of the largest bucket above it
    padded = min(-(-len(ids) // bucket) * bucket, generator.config.n_positions)
    row = np.zeros((1, padded), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_losses(generator.model, generator.params, row))[: len(ids) - 1]


@functools.partial(jax.jit, static_argnums=0)
def _losses(model: GPTBigCode, params: dict, tokens: Array) -> Array:
    """-ln p of the token after each of tokens [1, T]; after the last, of whatever id."""

    def losses(module: GPTBigCode, tokens: Array) -> Array:
        features = module.features(tokens)[0][0]
        targets = jnp.roll(tokens[0], -1)

        def loss(feature: Array, target: Array) -> Array:
            logits = module.unembed(feature[None, :])[0]
            return jax.nn.logsumexp(logits) - logits[target]

        return lax.map(lambda pair: loss(*pair), (features, targets), batch_size=BLOCK)

    return cast(Array, model.apply({"params": params}, tokens, method=losses))


def _texts(pieces: list[bytes]) -> list[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(piece) for piece in pieces]
    texts[-1] += decoder.decode(b"", final=True)
    return texts
