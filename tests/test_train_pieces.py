"""Pieces join to their document, end where characters end, and leave the promised room."""

import itertools

import numpy as np
import pytest
from token_stores import generated_documents, store_of, store_of_ids
from tokenizer_files import write_tokenizer

from jaxcoder.tokenizer import Tokenizer
from train.config import FimConfig
from train.fim import make_example
from train.pieces import (
    RESERVE,
    character_borders,
    chunk_number,
    cut_pieces,
    piece_ids,
    piece_limits,
    plan_chunks,
)

WINDOW = 33
LIMIT = WINDOW - RESERVE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_pieces_of_a_document_join_to_it_and_fit_the_window(tokenizer: Tokenizer) -> None:
    """Nothing is dropped, as the tail of a window or the remainder of a corpus is elsewhere."""
    texts = generated_documents(200)
    store = store_of(texts, tokenizer)
    pieces = cut_pieces(store, np.arange(len(texts)), window=WINDOW, tokenizer=tokenizer)
    joined = {number: [] for number in range(len(texts))}
    for piece, document in enumerate(pieces.document.tolist()):
        ids = piece_ids(store, pieces, piece)
        assert ids.dtype == np.int32
        assert len(ids) + RESERVE == pieces.room[piece] <= WINDOW
        assert pieces.start[piece] == len(joined[document])
        joined[document] += ids.tolist()
    assert joined == {number: tokenizer.encode(text) for number, text in enumerate(texts)}


def test_a_cut_splits_no_character(tokenizer: Tokenizer) -> None:
    """Elsewhere the edges of a window turn into replacement characters."""
    text = "".join(np.random.default_rng(0).choice(list("🙂日éa"), 200))
    ids = tokenizer.encode(text)
    store = store_of([text], tokenizer)
    pieces = cut_pieces(store, np.array([0]), window=WINDOW, tokenizer=tokenizer)
    assert len(pieces.start) > 10
    texts = [tokenizer.decode(piece_ids(store, pieces, piece)) for piece in range(len(pieces.stop))]
    assert "".join(texts) == text
    lengths = (pieces.stop - pieces.start)[:-1]
    assert set(lengths.tolist()) == {LIMIT - 3, LIMIT - 2, LIMIT - 1, LIMIT}, (
        "moved back, but no further"
    )
    blind = [tokenizer.decode(ids[start : start + LIMIT]) for start in range(0, len(ids), LIMIT)]
    assert "\ufffd" in "".join(blind), "the text must be able to show the defect"


def test_a_short_document_is_one_piece_and_an_empty_one_none(tokenizer: Tokenizer) -> None:
    texts = ["a" * LIMIT, "", "b" * (LIMIT + 1), "c", ""]
    pieces = cut_pieces(
        store_of(texts, tokenizer), np.arange(5), window=WINDOW, tokenizer=tokenizer
    )
    assert pieces.document.tolist() == [0, 2, 2, 3]
    assert pieces.start.tolist() == [0, 0, LIMIT, 0]
    assert pieces.stop.tolist() == [LIMIT, LIMIT, LIMIT + 1, 1]


def test_pieces_have_lengths_of_their_own_up_to_the_rows(tokenizer: Tokenizer) -> None:
    """Of a long document they join to it; none is longer than a row holds."""
    length = 400 * LIMIT
    store = store_of(["a" * length], tokenizer)
    for longest in (LIMIT - 5, LIMIT + 500):
        pieces = cut_pieces(
            store, np.array([0]), window=WINDOW, tokenizer=tokenizer, lengths=(8, longest)
        )
        assert pieces.stop.tolist()[:-1] == pieces.start.tolist()[1:]
        assert (pieces.start[0], pieces.stop[-1]) == (0, length)
        lengths = (pieces.stop - pieces.start)[:-1]
        assert set(lengths.tolist()) == set(range(8, min(longest, LIMIT) + 1))


def test_lengths_are_even_on_a_logarithmic_scale() -> None:
    """As many from 32 to 63 as from 64 to 127 and from 128 to 255; none beyond."""
    limits = piece_limits(3, 60_000, lengths=(32, 255), seed=0)
    drawn = np.array([*itertools.islice(limits, 2000)])
    octaves = np.bincount(np.log2(drawn).astype(int), minlength=9)
    assert octaves.sum() == octaves[5:8].sum() == 2000
    assert octaves[5:8].min() > 600, octaves


def test_the_highest_draw_is_the_longest_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a float it is 1: it gave one token more, which a row may not hold."""

    class Highest:
        def __init__(self, key: tuple[int, ...]) -> None:
            pass

        def generate_state(self, count: int, dtype: type) -> np.ndarray:
            return np.full(count, 2**64 - 1, dtype)

    monkeypatch.setattr(np.random, "SeedSequence", Highest)
    assert next(piece_limits(0, 100, lengths=(32, 255), seed=0)) == 255


def test_lengths_follow_from_the_seed_and_the_document_alone() -> None:
    def first(document: int, seed: int, length: int = 5000) -> list[int]:
        limits = piece_limits(document, length, lengths=(64, 256), seed=seed)
        return [*itertools.islice(limits, 20)]

    assert first(5, 0) == first(5, 0) == first(5, 0, length=9000)
    assert first(5, 0) != first(6, 0)
    assert first(5, 0) != first(5, 1)


def test_there_are_lengths_enough_where_every_cut_moves_back(tokenizer: Tokenizer) -> None:
    """Characters of four tokens and limits of 7: each piece has four, the fewest there can be."""
    ids = np.array(tokenizer.encode("🙂" * 50))[:199]
    limits = piece_limits(0, len(ids), lengths=(7, 7), seed=0)
    borders = character_borders(ids, limits, tokenizer=tokenizer)
    assert borders == [*range(0, 196, 4), 199]


def test_a_document_that_needs_no_cut_is_not_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of millions of short ones each start would read all."""
    read = []
    texts = ["a" * 5, "b" * 9]
    store = store_of(texts, tokenizer)
    documents = np.arange(2)

    def document_ids(store, document):
        read.append(document)
        return np.zeros(len(texts[document]), np.int32)

    monkeypatch.setattr("train.pieces.document_ids", document_ids)
    cut_pieces(store, documents, window=WINDOW, tokenizer=tokenizer, lengths=(5, 6))
    assert read == [1]


def test_lengths_are_what_they_were() -> None:
    """Golden: another draw would resume a run on other pieces. By NumPy's SeedSequence."""
    limits = piece_limits(3, 2000, lengths=(64, 256), seed=7)
    assert [*itertools.islice(limits, 12)] == [
        *(164, 220, 100, 222, 155, 101, 154, 112, 69, 154, 141, 195)
    ]


def test_only_the_chosen_documents_are_cut(tokenizer: Tokenizer) -> None:
    store = store_of(["aaa", "bbb", "ccc"], tokenizer)
    pieces = cut_pieces(store, np.array([2, 0]), window=WINDOW, tokenizer=tokenizer)
    texts = [tokenizer.decode(piece_ids(store, pieces, piece)) for piece in (0, 1)]
    assert texts == ["ccc", "aaa"]


def test_no_document_is_no_piece(tokenizer: Tokenizer) -> None:
    store = store_of(["", "a"], tokenizer)
    for documents in ([], [0]):
        chosen = np.array(documents, np.int64)
        pieces = cut_pieces(store, chosen, window=WINDOW, tokenizer=tokenizer)
        assert all(len(array) == 0 for array in pieces)
        assert all(len(array) == 0 for array in plan_chunks(store, chosen, window=WINDOW))


def test_bytes_that_are_no_character_are_cut_anywhere(tokenizer: Tokenizer) -> None:
    """U+40000 loses its first byte in StarCoder's vocabulary: a run of them starts nowhere."""
    ids = tokenizer.encode("\U00040000" * 30)
    store = store_of_ids([ids])
    pieces = cut_pieces(store, np.array([0]), window=WINDOW, tokenizer=tokenizer)
    parts = [piece_ids(store, pieces, piece).tolist() for piece in range(len(pieces.start))]
    assert [*itertools.chain(*parts)] == ids
    assert {len(part) for part in parts[:-1]} == {LIMIT}


def test_a_window_that_holds_nothing_but_the_reserve_is_refused(tokenizer: Tokenizer) -> None:
    store = store_of(["a"], tokenizer)
    for window in (0, RESERVE + 3):
        with pytest.raises(ValueError, match=rf"window: {window} tokens, expected at least 24"):
            cut_pieces(store, np.array([0]), window=window, tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"raise batch\.seq_len"):
            plan_chunks(store, np.array([0]), window=window)
    assert len(cut_pieces(store, np.array([0]), window=24, tokenizer=tokenizer).start) == 1


@pytest.mark.parametrize("window", [24, WINDOW, 100])
def test_chunks_of_permuted_documents_fit_the_room_planned_from_lengths(
    tokenizer: Tokenizer, window: int
) -> None:
    """The plan may not depend on the draws, and no chunk may be without a place in it."""
    texts = generated_documents(60, mean=40)
    store = store_of(texts, tokenizer)
    pieces = plan_chunks(store, np.arange(len(texts)), window=window)
    assert pieces.room.max() <= window
    for document, text in enumerate(texts):
        planned = np.flatnonzero(pieces.document == document)
        numbers = [chunk_number(pieces, piece, window=window) for piece in planned]
        assert numbers == list(range(len(planned)))
        if not text:
            continue
        for epoch in range(3):
            example = make_example(
                np.array(tokenizer.encode(text), np.int32),
                (0, epoch, document),
                config=FimConfig(rate=0.7),
                tokenizer=tokenizer,
                ends_document=True,
            )
            limits = itertools.repeat(window)
            chunks = np.diff(character_borders(example.ids, limits, tokenizer=tokenizer))
            assert len(chunks) <= len(planned)
            assert (chunks <= pieces.room[planned][: len(chunks)]).all()
