"""Bits per byte of held-out files: how well a model predicts text it never saw.

Each file is scored by itself, in windows that overlap by half; a token is scored once, in the
first window it is a target of, so that every one beyond the first window has at least half a
window of context. A window is n_positions less what training reserves: at the last positions of a
row nothing stands but the ends of middles. The first token of a file has no context: it counts
log2 of the vocabulary's size. The end of text is not scored.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcoder import Generator
from jaxcoder.model import GPTBigCode
from train.pieces import RESERVE

from .intervals import bootstrap

Array = jax.Array

_SHORTEST_WINDOW = 64
_ROWS_OF_A_FULL_WINDOW = 8


class Window(NamedTuple):
    """Tokens ``start:stop`` of a file; targets from `scored` on count here."""

    start: int
    scored: int
    stop: int


def plan_windows(tokens: int, size: int) -> list[Window]:
    """Windows of at most `size` inputs, and one more token to predict, over a file's tokens.

    Every token but the first is scored once.
    """
    windows = []
    start, scored = 0, 1
    while scored < tokens:
        stop = min(tokens, start + size + 1)
        windows.append(Window(start, scored, stop))
        start, scored = start + max(1, size // 2), stop
    return windows


def bits_per_byte(generator: Generator, texts: Mapping[str, str]) -> dict[str, Any]:
    """Bits per UTF-8 byte over all of `texts`, and an interval by resampling files.

    Args:
      generator: model and tokenizer.
      texts: name to text of the held-out files.

    Raises:
      ValueError: no text at all.
    """
    texts = {name: text for name, text in texts.items() if text}
    if not texts:
        raise ValueError("texts: all empty, expected held-out files; name the folder of them")
    ids = [generator.tokenizer.encode(text) for text in texts.values()]
    sizes = np.array([len(text.encode()) for text in texts.values()], np.float64)
    bits = np.full(len(ids), math.log2(generator.config.vocab_size))
    for files, nats in _scores(generator, ids):
        np.add.at(bits, files, nats / math.log(2))
    interval = bootstrap(np.stack([bits, sizes], 1), lambda sums: sums[..., 0] / sums[..., 1])
    return {
        "bits_per_byte": float(bits.sum() / sizes.sum()),
        "interval": list(interval),
        "files": len(ids),
        "bytes": int(sizes.sum()),
        "tokens": sum(map(len, ids)),
    }


def _scores(
    generator: Generator, ids: Sequence[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each batch of windows: the file each belongs to, and its nats over scored targets."""
    size = generator.config.n_positions - RESERVE
    windows = [
        (file, w) for file, tokens in enumerate(ids) for w in plan_windows(len(tokens), size)
    ]
    windows.sort(key=lambda item: item[1].start - item[1].stop)
    at = 0
    while at < len(windows):
        longest = windows[at][1].stop - windows[at][1].start - 1
        length = min(size, max(_SHORTEST_WINDOW, 1 << (longest - 1).bit_length()))
        rows = _ROWS_OF_A_FULL_WINDOW * max(1, size // length)
        batch = windows[at : at + rows]
        at += rows
        tokens, weights = (
            np.zeros((rows, length + 1), np.int32),
            np.zeros((rows, length), np.float32),
        )
        for row, (file, window) in enumerate(batch):
            span = window.stop - window.start
            tokens[row, :span] = ids[file][window.start : window.stop]
            weights[row, window.scored - window.start - 1 : span - 1] = 1.0
        nats = _window_nats(generator.model, generator.params, tokens, weights)
        files = np.array([file for file, _ in batch])
        yield files, np.asarray(nats, np.float64)[: len(batch)]


@functools.partial(jax.jit, static_argnums=0)
def _window_nats(model: GPTBigCode, params: dict, tokens: Array, weights: Array) -> Array:
    """Negative log-likelihood float32 [B] of the weighted targets of tokens [B, T+1]."""
    logits, _ = model.apply({"params": params}, tokens[:, :-1])
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return ((jax.nn.logsumexp(logits, axis=-1) - chosen) * weights).sum(axis=-1)
