"""Batches: what the model is shown at a step follows from the seed and the step alone.

Row r of a run, counted over all steps, is row r mod R of epoch r div R, R being the rows of an
epoch. So a run can start anywhere, batches can be made in any order and by any number of threads,
and the last rows of an epoch share a batch with the first of the next: none is dropped.
"""

import functools
import itertools
from collections.abc import Generator
from typing import Literal, NamedTuple

import numpy as np

from jaxcoder.errors import ConfigError
from jaxcoder.tokenizer import Tokenizer

from .config import TrainConfig
from .fim import Example, make_example
from .packing import Row, pack_row, plan_rows, row_order
from .pieces import (
    character_borders,
    chunk_number,
    cut_pieces,
    document_length,
    piece_ids,
    plan_chunks,
)
from .token_store import TokenStore, document_ids

_ENDLESS = 2**62


class Batch(NamedTuple):
    """The arrays of a step; the model reads ``[:, :T]``, and predicts ``tokens[:, 1:]``.

    Attributes:
      tokens: int32 [B, T + 1].
      segment_ids: int32 [B, T + 1], 0 for padding.
      positions: int32 [B, T + 1].
      loss_mask: float32 [B, T], how much ``tokens[:, t + 1]`` counts; it may be 0 everywhere.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_mask: np.ndarray


class Contents(NamedTuple):
    """What a batch was made of.

    Attributes:
      pieces: the piece numbers of every row, in the order of its segments.
      overflows: pieces left plain because their permutation needed more than the reserve.
    """

    pieces: list[list[int]]
    overflows: int


class BatchSource:
    """The batches of one split of a store, by step."""

    def __init__(
        self,
        store: TokenStore,
        tokenizer: Tokenizer,
        config: TrainConfig,
        *,
        split: Literal["train", "validation"] = "train",
    ) -> None:
        """Cut and pack the documents of the split.

        Raises:
          ConfigError: a split without a token, or from `document_ids`.
          TokenizerError: pieces are to be permuted, and the tokenizer lacks the sentinels.
          ValueError: a `batch.seq_len` too short for fill-in-the-middle.
        """
        if config.fim.rate:
            _ = tokenizer.fim  # raises here, and not at the first permuted piece
        self._store, self._tokenizer, self._config = store, tokenizer, config
        self._window = config.batch.seq_len + 1
        documents = np.flatnonzero(np.asarray(store.is_validation) == (split == "validation"))
        if config.fim.level == "document":
            self._pieces = plan_chunks(store, documents, window=self._window)
        else:
            self._pieces = cut_pieces(
                store,
                documents,
                window=self._window,
                tokenizer=tokenizer,
                lengths=config.batch.piece_tokens if config.fim.rate else (),
                seed=config.seed,
            )
        if not len(self._pieces.document):
            raise ConfigError(
                f"data: {config.data!r} has no tokens for {split}, expected some; add documents "
                "or change source.validation_share"
            )
        self._plan = plan_rows(self._pieces.room, self._window, seed=config.seed)
        self._order = functools.lru_cache(maxsize=2)(self._row_order)

    @property
    def rows_per_epoch(self) -> int:
        """Rows in which every piece occurs once."""
        return len(self._plan.starts) - 1

    @property
    def batches_per_epoch(self) -> int:
        """Batches that the rows of one epoch fill; 1 at least."""
        return max(1, self.rows_per_epoch // self._config.batch.size)

    @property
    def pieces_per_epoch(self) -> int:
        """Pieces of the split."""
        return len(self._pieces.document)

    def batch(self, step: int) -> tuple[Batch, Contents]:
        """The batch of a step, from 0, whatever was asked before."""
        size = self._config.batch.size
        rows, pieces, overflows = zip(
            *(self.row(number) for number in range(step * size, (step + 1) * size)), strict=True
        )
        tokens, segment_ids, positions, loss_mask = map(np.stack, zip(*rows, strict=True))
        batch = Batch(tokens, segment_ids, positions, loss_mask)
        return batch, Contents(list(pieces), sum(overflows))

    def row(self, number: int) -> tuple[Row, list[int], int]:
        """A row, the pieces of its segments, and overflows, by its number over all steps."""
        epoch, place = divmod(number, self.rows_per_epoch)
        planned = self._plan.row(self._order(epoch)[place])
        made = [(piece, self._example(piece, epoch)) for piece in planned]
        pieces = [piece for piece, example in made if len(example.ids)]
        examples = [example for _, example in made]
        row = pack_row(
            examples,
            self._window,
            config=self._config.batch,
            pad_id=self._tokenizer.end_of_text,
        )
        return row, pieces, sum(example.overflow for example in examples)

    def iterate(self, start_step: int) -> Generator[tuple[int, Batch, Contents], None, None]:
        """Step, batch and contents from `start_step` on, without end, prepared ahead in threads.

        Raises:
          ConfigError: threads are asked for and grain is not installed.
        """
        threads = self._config.compute.prefetch_threads
        if not threads:
            for step in range(start_step, _ENDLESS):
                yield step, *self.batch(step)
            return
        try:
            import grain
        except ModuleNotFoundError as exc:
            raise ConfigError(
                f"compute.prefetch_threads: {threads}, but grain is not installed; "
                "pip install grain, or set it to 0"
            ) from exc
        steps = grain.MapDataset.range(start_step, _ENDLESS)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = iter(steps.map(self.batch).to_iter_dataset(options))
        try:
            for step, (batch, contents) in enumerate(batches, start=start_step):
                yield step, batch, contents
        finally:
            batches.close()

    def describe(self, piece: int) -> str:
        """Document name and token offsets of a piece, for messages.

        At level "document" the offsets are those `plan_chunks` gives: of the permuted document,
        and up to three tokens low for every chunk before this one.
        """
        document = int(self._pieces.document[piece])
        start, stop = int(self._pieces.start[piece]), int(self._pieces.stop[piece])
        return f"{self._store.names[document]}[{start}:{stop}]"

    def _header_length(self, document: int) -> int:
        return int(self._store.header_lengths[document])

    def _row_order(self, epoch: int) -> np.ndarray:
        return row_order(self.rows_per_epoch, seed=self._config.seed, epoch=epoch)

    def _example(self, piece: int, epoch: int) -> Example:
        if self._config.fim.level == "document":
            return self._chunk(piece, epoch)
        document = int(self._pieces.document[piece])
        start, stop = int(self._pieces.start[piece]), int(self._pieces.stop[piece])
        return make_example(
            piece_ids(self._store, self._pieces, piece),
            (self._config.seed, epoch, piece),
            config=self._config.fim,
            tokenizer=self._tokenizer,
            ends_document=stop == document_length(self._store, document),
            header=min(max(self._header_length(document) - start, 0), stop - start),
        )

    def _chunk(self, piece: int, epoch: int) -> Example:
        """One chunk of a document that is permuted as a whole; its last ones may be empty."""
        number = chunk_number(self._pieces, piece, window=self._window)
        document = int(self._pieces.document[piece])
        whole = make_example(
            document_ids(self._store, document),
            (self._config.seed, epoch, piece - number),
            config=self._config.fim,
            tokenizer=self._tokenizer,
            ends_document=True,
            header=self._header_length(document),
        )
        chunks = itertools.repeat(self._window)
        borders = character_borders(whole.ids, chunks, tokenizer=self._tokenizer)
        start, stop = (borders[min(number + end, len(borders) - 1)] for end in (0, 1))
        first, last = (min(max(edge - start, 0), stop - start) for edge in whole.middle)
        overflow = whole.overflow and number == 0
        return Example(whole.ids[start:stop], (first, last), whole.kind, overflow)
