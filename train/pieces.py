"""Documents cut into pieces that fit a row.

A piece is a run of a document's stored tokens. It is planned with `RESERVE` tokens of room more
than it has, for what fill-in-the-middle adds, so that the plan of an epoch does not depend on
which pieces are permuted, nor where.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxcoder.tokenizer import Tokenizer

from .token_store import TokenStore, document_ids

RESERVE = 20
"""Tokens of room beside the stored ones: 3 sentinels, eos, and 16 for cuts tokenised again."""

_LIMITS = 4  # sets these draws apart from others made with the same seed
_MOST_BACK = 3  # a character of UTF-8 has four bytes at most, so four tokens

SHORTEST_PIECE = _MOST_BACK + 1
"""Longest tokens of a piece below which a cut need not find a character's start."""

SHORTEST_WINDOW = RESERVE + SHORTEST_PIECE
"""Tokens of a row, T + 1, below which it need not have room for a piece."""


class Pieces(NamedTuple):
    """Pieces in the order of their documents; every array has one entry for a piece.

    Attributes:
      document: int64 [n], index in the store.
      start, stop: int64 [n], token offsets inside the document.
      room: int64 [n], tokens that a row must keep free for the piece.
    """

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    room: np.ndarray


def piece_limits(
    document: int, length: int, *, lengths: tuple[int, int], seed: int
) -> Iterator[int]:
    """The longest that each piece of a document may be, for as many as it can have.

    They are drawn evenly on a logarithmic scale. Where pieces have one length, the end of an
    infilled middle stands at one position, and where the middle begins tells how long it is: a
    model learns that instead of where the line ends, and infills nothing of another length.

    Args:
      document: its number in the store; the draws follow from it and the seed alone.
      length: its tokens.
      lengths: shortest and longest.
      seed: of the run.
    """
    shortest, longest = lengths
    pieces = max(1, -(-length // (shortest - _MOST_BACK)))
    bits = np.random.SeedSequence((_LIMITS, seed, document)).generate_state(pieces, np.uint64)
    growth = (longest + 1) / shortest
    # The highest draws round up to longest + 1, which a row may not hold.
    return (min(longest, int(shortest * growth ** (int(each) / 2.0**64))) for each in bits)


def cut_pieces(
    store: TokenStore,
    document_indices: np.ndarray,
    *,
    window: int,
    tokenizer: Tokenizer,
    lengths: tuple[int, ...] = (),
    seed: int = 0,
) -> Pieces:
    """Cut documents into pieces of at most `window` - `RESERVE` stored tokens.

    The pieces of a document join to it exactly; all but its last are as long as their limit and a
    cut between two characters allow. An empty document has no piece.

    Args:
      store: the tokens.
      document_indices: int64 [documents], which of them.
      window: tokens of a row, T + 1.
      tokenizer: tells where characters start.
      lengths: shortest and longest of the limits that are drawn for pieces; empty: as long as a
        row holds, all of them.
      seed: of these draws.

    Raises:
      ValueError: a window too short for the reserve.
      ConfigError: from `document_ids`.
    """
    longest = _checked(window) - RESERVE
    shortest, most = (min(each, longest) for each in lengths or (longest, longest))
    borders = []
    for document in document_indices.tolist():
        length = document_length(store, document)
        if length <= shortest:
            borders.append([0, length])  # without reading it
            continue
        limits = (
            piece_limits(document, length, lengths=(shortest, most), seed=seed)
            if lengths
            else itertools.repeat(longest)
        )
        ids = document_ids(store, document)
        borders.append(character_borders(ids, limits, tokenizer=tokenizer))
    return _pieces(document_indices, borders, spare=RESERVE)


def plan_chunks(store: TokenStore, document_indices: np.ndarray, *, window: int) -> Pieces:
    """Room for whole documents that are permuted first and split afterwards.

    A permuted document has at most `RESERVE` tokens more than the stored one, and every chunk of
    it but the last has `window` tokens or up to three less (see `character_borders`): the number
    of chunks and their room follow from the stored length alone. Here `start` and `stop` count
    in steps of the shortest chunk; `chunk_number` tells which chunk of its document a piece is.

    Args:
      store: the tokens; only lengths are read.
      document_indices: int64 [documents], which of them.
      window: tokens of a row, T + 1.

    Raises:
      ValueError: a window too short for the reserve.
    """
    shortest = _checked(window) - _MOST_BACK
    lengths = store.starts[document_indices + 1] - store.starts[document_indices]
    borders = [
        [*range(0, length + RESERVE, shortest), length + RESERVE] if length else [0, 0]
        for length in lengths.tolist()
    ]
    return _pieces(document_indices, borders, spare=_MOST_BACK)


def chunk_number(pieces: Pieces, piece: int, *, window: int) -> int:
    """Which chunk of its document a piece of `plan_chunks` is, from 0."""
    return int(pieces.start[piece]) // (window - _MOST_BACK)


def character_borders(
    ids: Sequence[int] | np.ndarray, limits: Iterator[int], *, tokenizer: Tokenizer
) -> list[int]:
    """Offsets 0 < ... < len(ids), each at most the next limit apart, where a character starts.

    Steps are as many tokens as the limit says, or up to three less. Bytes that are no character,
    more than three in a row, are cut anywhere.
    """
    borders = [0]
    while (end := borders[-1] + next(limits)) < len(ids):
        borders.append(character_start(ids, end, tokenizer=tokenizer))
    return [*borders, len(ids)]


def character_start(ids: Sequence[int] | np.ndarray, offset: int, *, tokenizer: Tokenizer) -> int:
    """The nearest offset up to `offset`, three back at most, where a token starts a character."""
    for candidate in range(offset, max(offset - _MOST_BACK, 0) - 1, -1):
        if candidate == len(ids):
            return candidate
        first = tokenizer.token_bytes(ids[candidate])[:1]
        if not b"\x80" <= first <= b"\xbf":
            return candidate
    return offset


def piece_ids(store: TokenStore, pieces: Pieces, piece: int) -> np.ndarray:
    """The stored ids of one piece of `cut_pieces`, int32.

    Raises:
      ConfigError: from `document_ids`.
    """
    ids = document_ids(store, pieces.document[piece])
    return ids[pieces.start[piece] : pieces.stop[piece]]


def document_length(store: TokenStore, document: int) -> int:
    """Stored tokens of a document, its header's too."""
    return int(store.starts[document + 1] - store.starts[document])


def _pieces(documents: np.ndarray, borders: list[list[int]], *, spare: int) -> Pieces:
    """One piece between every two neighbouring borders that differ."""
    start = np.array([border for cuts in borders for border in cuts[:-1]], np.int64)
    stop = np.array([border for cuts in borders for border in cuts[1:]], np.int64)
    document = np.repeat(
        np.asarray(documents, np.int64), np.array([len(cuts) - 1 for cuts in borders], np.int64)
    )
    kept = stop > start
    document, start, stop = document[kept], start[kept], stop[kept]
    return Pieces(document, start, stop, stop - start + spare)


def _checked(window: int) -> int:
    if window < SHORTEST_WINDOW:
        raise ValueError(
            f"window: {window} tokens, expected at least {SHORTEST_WINDOW}, of which {RESERVE} are "
            "kept for fill-in-the-middle; raise batch.seq_len"
        )
    return window
