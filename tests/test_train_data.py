"""A batch follows from the seed and the step: no order, restart, host or thread changes it."""

import dataclasses
import itertools
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from token_stores import generated_documents, store_of, store_of_ids
from tokenizer_files import byte_tokenizer_json, write_tokenizer

from jaxcoder.errors import ConfigError, TokenizerError
from jaxcoder.tokenizer import Tokenizer
from train.config import BatchConfig, ComputeConfig, FimConfig, TrainConfig
from train.data import Batch, BatchSource
from train.fim import make_example, unpermute
from train.packing import Row
from train.pieces import RESERVE, cut_pieces, piece_ids

TEXTS = generated_documents(40, seed=1)
CONFIG = TrainConfig(
    batch=BatchConfig(size=3, seq_len=63), compute=ComputeConfig(prefetch_threads=0)
)
THREADED = dataclasses.replace(CONFIG, compute=ComputeConfig(prefetch_threads=2))
LEVELS = ("context", "document")
SPECIAL_TOKENS = 19  # they are the first ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def config_of(**fim: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, fim=FimConfig(**fim))


def source_of(
    tokenizer: Tokenizer, config: TrainConfig = CONFIG, texts: list[str] = TEXTS
) -> BatchSource:
    return BatchSource(store_of(texts, tokenizer), tokenizer, config)


def equal(first: Batch, second: Batch) -> bool:
    return all(map(np.array_equal, first, second))


def segments_of(row: Row) -> list[np.ndarray]:
    """The ids of every segment of a row, in order."""
    count = row.segment_ids.max()
    return [row.tokens[row.segment_ids == segment] for segment in range(1, count + 1)]


def test_shapes_and_types(tokenizer: Tokenizer) -> None:
    batch, contents = source_of(tokenizer).batch(0)
    assert [array.shape for array in batch] == [(3, 64), (3, 64), (3, 64), (3, 63)]
    assert [array.dtype for array in batch] == [np.int32, np.int32, np.int32, np.float32]
    assert [len(pieces) for pieces in contents.pieces] == batch.segment_ids.max(axis=1).tolist()
    assert set(np.unique(batch.loss_mask)) == {0.0, 1.0}


@pytest.mark.parametrize("level", LEVELS)
def test_a_batch_follows_from_seed_and_step(tokenizer: Tokenizer, level: str) -> None:
    """Two sources, asked in opposite orders, over several epochs."""
    config = config_of(level=level)
    steps = 3 * source_of(tokenizer, config).batches_per_epoch
    forwards, backwards = source_of(tokenizer, config), source_of(tokenizer, config)
    first = {step: forwards.batch(step) for step in range(steps)}
    second = {step: backwards.batch(step) for step in reversed(range(steps))}
    assert all(equal(first[step][0], second[step][0]) for step in range(steps))
    assert all(first[step][1] == second[step][1] for step in range(steps))
    other = source_of(tokenizer, dataclasses.replace(config, seed=1))
    assert not equal(other.batch(0)[0], first[0][0])


def test_rows_may_be_made_by_any_number_of_hosts(tokenizer: Tokenizer) -> None:
    """A row follows from its number over all steps: hosts share rows out as they like."""
    source = source_of(tokenizer)
    steps = 2 * source.batches_per_epoch
    tokens = np.concatenate([source.batch(step)[0].tokens for step in range(steps)])
    for hosts in (1, 2, 3):
        for host in range(hosts):
            mine = source_of(tokenizer)
            for number in range(host, len(tokens), hosts):
                assert np.array_equal(mine.row(number)[0].tokens, tokens[number])


def test_an_epoch_shows_every_piece_once_and_no_row_is_dropped(tokenizer: Tokenizer) -> None:
    """A batch takes its last rows from the next epoch where the rows do not divide evenly."""
    source = source_of(tokenizer)
    rows = source.rows_per_epoch
    assert rows % CONFIG.batch.size, "choose documents whose rows do not divide evenly"
    steps = range(-(-3 * rows // CONFIG.batch.size))
    pieces = [row for step in steps for row in source.batch(step)[1].pieces]
    epochs = [
        [*itertools.chain.from_iterable(pieces[epoch * rows : (epoch + 1) * rows])]
        for epoch in range(3)
    ]
    assert all(sorted(epoch) == list(range(source.pieces_per_epoch)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "the order is another in every epoch"


def test_short_pieces_share_a_row_and_lose_nothing(tokenizer: Tokenizer) -> None:
    """Each is permuted by itself; un-permuted, they join to the documents."""
    batch = dataclasses.replace(CONFIG.batch, piece_tokens=(8, 16))
    source = source_of(tokenizer, dataclasses.replace(config_of(rate=1.0), batch=batch))
    texts: dict[int, str] = {}
    for number in range(source.rows_per_epoch):
        row, pieces, _ = source.row(number)
        segments = segments_of(row)
        assert max(map(len, segments)) <= 16 + RESERVE
        texts |= dict(zip(pieces, [unpermute(ids, tokenizer) for ids in segments], strict=True))
    assert "".join(texts[piece] for piece in sorted(texts)) == "".join(TEXTS)
    assert source.pieces_per_epoch > 2 * source_of(tokenizer).pieces_per_epoch


def test_where_a_middle_begins_does_not_tell_its_length(tokenizer: Tokenizer) -> None:
    """Control: pieces as long as a row all end at one position, so it does."""
    texts = ["".join(generated_documents(200, seed=2))]
    spread = {}
    for lengths in ((), (24, 512)):
        batch = BatchConfig(size=1, seq_len=255, piece_tokens=lengths)
        config = dataclasses.replace(config_of(rate=1.0, spm_rate=0.0), batch=batch)
        source = source_of(tokenizer, config, texts)
        rows = [source.row(number)[0] for number in range(source.rows_per_epoch)]
        ends = [len(ids) for row in rows for ids in segments_of(row)]
        assert len(ends) > 20
        spread[lengths] = np.subtract(*np.quantile(ends, [0.9, 0.1]))
    assert spread[()] <= RESERVE
    assert spread[(24, 512)] > 100


def test_plain_pieces_are_as_long_as_rows_where_none_is_permuted(tokenizer: Tokenizer) -> None:
    batch = dataclasses.replace(CONFIG.batch, piece_tokens=(8, 16))
    plain = config_of(rate=0.0)
    short = dataclasses.replace(plain, batch=batch)
    assert (
        source_of(tokenizer, short).pieces_per_epoch == source_of(tokenizer, plain).pieces_per_epoch
    )


def test_each_epoch_cuts_anew(tokenizer: Tokenizer) -> None:
    source = source_of(tokenizer, config_of(rate=1.0))
    seen = defaultdict(set)
    for number in range(8 * source.rows_per_epoch):
        row, pieces, _ = source.row(number)
        for piece, ids in zip(pieces, segments_of(row), strict=True):
            seen[piece].add(tuple(ids.tolist()))
    long = [piece for piece, forms in seen.items() if min(map(len, forms)) > 30]
    assert len(long) > 10
    assert all(len(seen[piece]) > 5 for piece in long)


@pytest.mark.parametrize("threads", [0, 2])
def test_iterating_from_any_step_gives_the_batches_of_those_steps(
    tokenizer: Tokenizer, threads: int
) -> None:
    """A run that resumes, at whatever step, sees what the uninterrupted run would have seen."""
    if threads:
        pytest.importorskip("grain")
    compute = ComputeConfig(prefetch_threads=threads)
    config = dataclasses.replace(CONFIG, compute=compute)
    reference = source_of(tokenizer, texts=TEXTS[:12])
    steps = 2 * reference.batches_per_epoch + 1
    whole = [reference.batch(step) for step in range(steps)]
    for start in range(steps):
        batches = source_of(tokenizer, config, TEXTS[:12]).iterate(start)
        for expected_step in range(start, steps):
            step, batch, contents = next(batches)
            assert step == expected_step
            assert equal(batch, whole[step][0])
            assert contents == whole[step][1]


def test_an_error_in_a_thread_is_raised_where_batches_are_taken(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grain")
    source = source_of(tokenizer, THREADED)

    def fail(*arguments: object) -> None:
        raise OSError("the store is gone")

    monkeypatch.setattr("train.data.piece_ids", fail)
    with pytest.raises(OSError, match="the store is gone"):
        next(source.iterate(0))


def test_threads_without_grain_are_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ConfigError, match=r"compute\.prefetch_threads: 2, but grain is not"):
        next(source_of(tokenizer, THREADED).iterate(0))


def test_splits_share_no_document(tokenizer: Tokenizer) -> None:
    texts = ["train one", "validation", "train two"]
    store = store_of(texts, tokenizer, validation=[1])
    plain = config_of(rate=0.0)
    shown = {}
    for split in ("train", "validation"):
        source = BatchSource(store, tokenizer, plain, split=split)
        row, pieces, _ = source.row(0)
        shown[split] = sorted(tokenizer.decode(ids) for ids in segments_of(row))
        assert source.pieces_per_epoch == len(pieces)
        assert source.batches_per_epoch == 1, "fewer rows than a batch has are one batch"
    assert shown == {"train": ["train one", "train two"], "validation": ["validation"]}


def test_a_split_without_a_token_is_refused(tokenizer: Tokenizer) -> None:
    store = store_of(["a", ""], tokenizer, validation=[1])
    config = dataclasses.replace(CONFIG, data="code/")
    with pytest.raises(ConfigError, match=r"data: 'code/' has no tokens for validation"):
        BatchSource(store, tokenizer, config, split="validation")


def test_a_tokenizer_without_sentinels_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    """As GPT-2's is; without fill-in-the-middle it will do."""
    definition = byte_tokenizer_json(fim=" ")
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, definition))
    with pytest.raises(TokenizerError, match="infilling needs a model trained with it"):
        source_of(tokenizer)
    assert source_of(tokenizer, config_of(rate=0.0)).batch(0)[0].loss_mask.any()


def test_a_piece_is_described_by_its_document_and_place(tokenizer: Tokenizer) -> None:
    source = source_of(tokenizer, texts=["abc", "x" * 50])
    described = [source.describe(piece) for piece in range(source.pieces_per_epoch)]
    assert described == ["document_0.py[0:3]", "document_1.py[0:44]", "document_1.py[44:50]"]


def test_a_loss_on_middles_of_nothing_permuted_is_a_mask_of_zeros(tokenizer: Tokenizer) -> None:
    config = dataclasses.replace(
        config_of(rate=0.0), batch=dataclasses.replace(CONFIG.batch, loss="middle")
    )
    batch, _ = source_of(tokenizer, config).batch(0)
    assert not batch.loss_mask.any()
    assert batch.segment_ids.any()


def test_targets_are_in_the_same_segment_and_never_padding(tokenizer: Tokenizer) -> None:
    source = source_of(tokenizer)
    for step in range(source.batches_per_epoch):
        batch, _ = source.batch(step)
        inputs, targets = batch.segment_ids[:, :-1], batch.segment_ids[:, 1:]
        assert np.array_equal(batch.loss_mask == 1, (inputs == targets) & (targets > 0))
        starts = np.diff(batch.segment_ids, axis=1, prepend=-1) != 0
        assert (batch.positions[starts] == 0).all()
        assert (batch.positions[:, :-1] < CONFIG.batch.seq_len).all()


@pytest.mark.parametrize("level", LEVELS)
def test_headers_stay_in_front_of_their_document(tokenizer: Tokenizer, level: str) -> None:
    """The first has one longer than a row: what is left of it starts the next piece."""
    header = tokenizer.encode("<reponame>" + "r" * 50 + "<filename>c.py\n", special=True)
    body = tokenizer.encode("x = 1\n" * 20)
    store = store_of_ids([header + body] * 3, header=len(header))
    source = BatchSource(store, tokenizer, config_of(rate=1.0, level=level))
    chunks, _ = chunks_of_epoch(source)
    documents = defaultdict(list)
    for piece in sorted(chunks):
        documents[source.describe(piece).partition("[")[0]] += chunks[piece]
    for ids in documents.values():
        assert ids[: len(header) + 1] == [*header, tokenizer.fim.prefix]


@pytest.mark.parametrize("level", LEVELS)
def test_overflows_are_counted_once_each(tmp_path: Path, level: str) -> None:
    """Words of 1,024 letters that are one token become many where they are cut."""
    doubling = [("a" * 2**power, "a" * 2**power) for power in range(10)]
    tokenizer = Tokenizer.from_file(write_tokenizer(tmp_path, byte_tokenizer_json(doubling)))
    text = " ".join(["a" * 1024] * 10)
    config = dataclasses.replace(
        config_of(rate=1.0, level=level), batch=BatchConfig(size=1, seq_len=24)
    )
    source = source_of(tokenizer, config, [text] * 30)
    counted, permuted = 0, set()
    for step in range(source.batches_per_epoch):
        batch, contents = source.batch(step)
        counted += contents.overflows
        for segment, piece in enumerate(contents.pieces[0], start=1):
            ids = batch.tokens[batch.segment_ids == segment]
            if tokenizer.fim.prefix in ids:
                permuted.add(piece)
    pieces = source.pieces_per_epoch if level == "context" else 30
    assert 0 < counted == pieces - len(permuted) < pieces


@pytest.mark.parametrize("cut", ["character", "token"])
def test_documents_permuted_whole_join_from_their_chunks(tokenizer: Tokenizer, cut: str) -> None:
    """Level "document": a document is permuted once, and its chunks lose nothing of it."""
    texts = [text for text in TEXTS if text]
    config = dataclasses.replace(
        config_of(rate=0.8, level="document", cut=cut),
        batch=dataclasses.replace(CONFIG.batch, loss="middle"),
    )
    source = source_of(tokenizer, config, texts)
    chunks, learnt = chunks_of_epoch(source)
    joined, first_pieces = defaultdict(list), {}
    for piece in sorted(chunks):
        name = source.describe(piece).partition("[")[0]
        first_pieces.setdefault(name, piece)
        joined[name] += chunks[piece]
    restored = {name: unpermute(np.array(ids), tokenizer) for name, ids in joined.items()}
    assert restored == {f"document_{number}.py": text for number, text in enumerate(texts)}
    assert any(len(ids) > 2 * CONFIG.batch.seq_len for ids in joined.values())
    for text, (name, piece) in zip(texts, first_pieces.items(), strict=True):
        whole = make_example(
            np.array(tokenizer.encode(text)),
            (config.seed, 0, piece),
            config=config.fim,
            tokenizer=tokenizer,
            ends_document=True,
        )
        assert joined[name] == whole.ids.tolist()
        # A chunk's first token is nobody's target.
        own = [number for number in chunks if source.describe(number).startswith(f"{name}[")]
        starts = np.cumsum([0, *(len(chunks[number]) for number in sorted(own))])
        middle = set(range(*whole.middle)) - set(starts.tolist())
        expected = [whole.ids[offset] for offset in sorted(middle)]
        assert [token for number in sorted(own) for token in learnt[number]] == expected


def chunks_of_epoch(source: BatchSource) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Of every piece of epoch 0: its ids, and those that the loss counts."""
    ids, learnt = {}, {}
    for number in range(source.rows_per_epoch):
        row, pieces, overflows = source.row(number)
        assert not overflows
        for segment, piece in enumerate(pieces, start=1):
            ids[piece] = row.tokens[row.segment_ids == segment].tolist()
            counted = (row.loss_mask > 0) & (row.segment_ids[1:] == segment)
            learnt[piece] = row.tokens[1:][counted].tolist()
    return ids, learnt


def test_twenty_thousand_documents_come_back_exactly(tokenizer: Tokenizer) -> None:
    """Through cutting, permuting and packing: every piece's text, and so every document's.

    Half of the pieces are permuted: three sentinels, once each and in order, and one eos.
    """
    texts = generated_documents(20_000, seed=2, mean=9)
    config = dataclasses.replace(CONFIG, batch=BatchConfig(size=8, seq_len=127))
    store = store_of(texts, tokenizer)
    source = BatchSource(store, tokenizer, config)
    pieces = cut_pieces(store, np.arange(len(texts)), window=128, tokenizer=tokenizer)
    restored, kinds = {}, Counter()
    fim = tokenizer.fim
    sentinels = [fim.prefix, fim.suffix, fim.middle, tokenizer.end_of_text]
    for number in range(source.rows_per_epoch):
        row, numbers, overflows = source.row(number)
        assert not overflows
        for piece, ids in zip(numbers, segments_of(row), strict=True):
            assert piece not in restored
            restored[piece] = unpermute(ids, tokenizer)
            special = [token for token in ids.tolist() if token < SPECIAL_TOKENS]
            kinds[len(special)] += 1
            assert special in (sentinels, [tokenizer.end_of_text], [])
    assert len(restored) == len(pieces.start) == source.pieces_per_epoch
    joined = [""] * len(texts)
    for piece, document in enumerate(pieces.document.tolist()):
        assert restored[piece] == tokenizer.decode(piece_ids(store, pieces, piece))
        joined[document] += restored[piece]
    assert joined == texts
    assert pieces.start.any(), "some documents must be longer than a row"
    assert "" in texts, "some must be empty"
    low, high = stats.binom.interval(0.999, len(restored), 0.5)
    assert low <= kinds[4] <= high
