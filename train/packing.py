"""Pieces packed into rows of fixed length: which go together, and how a row is laid out.

The plan is made from the rooms of the pieces alone, once for a run; an epoch only changes the order
of the rows. So the number of rows of an epoch is a constant, and the row of any step is found by
arithmetic.
"""

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .config import BatchConfig
from .fim import Example

_GROUPING = 2  # these set draws apart from others made with the same seed
_ORDER = 3
_OPEN_ROWS = 1024


class RowPlan(NamedTuple):
    """Pieces of every row: those of row r are ``pieces[starts[r] : starts[r + 1]]``.

    Attributes:
      pieces: int64 [n], every piece once.
      starts: int64 [rows + 1].
    """

    pieces: np.ndarray
    starts: np.ndarray

    def row(self, number: int) -> list[int]:
        """The pieces of one row."""
        return self.pieces[self.starts[number] : self.starts[number + 1]].tolist()


class Row(NamedTuple):
    """One packed row; window = T + 1.

    Attributes:
      tokens: int32 [T + 1].
      segment_ids: int32 [T + 1], 1 and up for what sees each other, 0 for padding.
      positions: int32 [T + 1].
      loss_mask: float32 [T], how much the token after position t counts, 0 if it does not.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_mask: np.ndarray


def plan_rows(room: np.ndarray, window: int, *, seed: int) -> RowPlan:
    """Group pieces into rows: in random order, each into the open row it leaves least space in.

    Args:
      room: int64 [n], tokens each piece needs at most.
      window: tokens of a row.
      seed: the grouping follows from it and `room`.

    Raises:
      ValueError: a piece that no row can hold.
    """
    if len(room) and room.max() > window:
        piece = int(room.argmax())
        raise ValueError(
            f"room[{piece}]: {room[piece]} tokens, expected at most the window, {window}; "
            "cut pieces for this window"
        )
    order = shuffled(len(room), (_GROUPING, seed)).tolist()
    needs = room.tolist()
    smallest = min(needs, default=0)
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free tokens, row), the fullest first
    for piece in order:
        place = bisect.bisect_left(spaces, (needs[piece], 0))
        if place < len(spaces):
            free, row = spaces.pop(place)
            rows[row].append(piece)
        else:
            free, row = window, len(rows)
            rows.append([piece])
        if free - needs[piece] >= smallest:
            bisect.insort(spaces, (free - needs[piece], row))
            if len(spaces) > _OPEN_ROWS:
                del spaces[0]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    return RowPlan(np.array([piece for row in rows for piece in row], np.int64), starts)


def row_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch: a permutation of 0 .. rows - 1, int64."""
    return shuffled(rows, (_ORDER, seed, epoch))


def shuffled(count: int, key: tuple[int, ...]) -> np.ndarray:
    """A permutation of 0 .. count - 1, int64, that follows from `key`.

    NumPy keeps the raw bits of Philox fixed over its releases, not the methods of `Generator`.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(bits, kind="stable")


def pack_row(examples: Sequence[Example], window: int, *, config: BatchConfig, pad_id: int) -> Row:
    """Lay examples out one after the other, then padding.

    With ``documents="separate"`` each is a segment whose positions start at 0, and its first token
    is nobody's target. With "joined" all are one segment. Padding is segment 0 and never a target,
    whatever its id.

    Args:
      examples: together at most `window` ids; those without ids are passed over.
      window: tokens of the row, T + 1.
      config: how documents meet, and what counts.
      pad_id: an id of the vocabulary.

    Raises:
      ValueError: more ids than the window holds.
    """
    total = sum(len(example.ids) for example in examples)
    if total > window:
        raise ValueError(
            f"examples: {total} ids together, expected at most the window, {window}; "
            "pack by the room of the pieces"
        )
    tokens = np.full(window, pad_id, np.int32)
    segment_ids, positions = np.zeros(window, np.int32), np.zeros(window, np.int32)
    counts = np.zeros(window, np.float32)
    start = 0
    filled = (example for example in examples if len(example.ids))
    for segment, example in enumerate(filled, start=1):
        stop = start + len(example.ids)
        tokens[start:stop] = example.ids
        segment_ids[start:stop] = segment
        positions[start:stop] = np.arange(stop - start)
        if config.loss == "all":
            counts[start:stop] = 1
        first, last = example.middle
        counts[start + first : start + last] = config.middle_weight
        start = stop
    if config.documents == "joined":
        segment_ids[:start] = 1
        positions[:start] = np.arange(start)
    same_segment = segment_ids[1:] == segment_ids[:-1]
    return Row(tokens, segment_ids, positions, counts[1:] * same_segment)
