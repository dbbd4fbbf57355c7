"""Rows hold every piece once, and what a row says counts is what the model may learn from it."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from model_cases import forward, random_params

from jaxcoder.config import ModelConfig
from jaxcoder.model import GPTBigCode
from train.config import BatchConfig
from train.fim import Example
from train.packing import Row, pack_row, plan_rows, row_order

WINDOW = 12
SEPARATE = BatchConfig()
JOINED = BatchConfig(documents="joined")
MIDDLE = BatchConfig(loss="middle")
PAD = 0


def plain(*ids: int) -> Example:
    return Example(np.array(ids, np.int32), (0, 0), "plain", False)


def permuted(*ids: int, middle: int) -> Example:
    """An example whose last `middle` ids are the middle and its eos."""
    return Example(np.array(ids, np.int32), (len(ids) - middle, len(ids)), "psm", False)


def row_of(examples: Sequence[Example], config: BatchConfig = SEPARATE) -> Row:
    return pack_row(examples, WINDOW, config=config, pad_id=PAD)


@pytest.mark.parametrize("count", [0, 1, 5, 2000])
def test_every_piece_is_in_one_row_and_no_row_is_too_full(count: int) -> None:
    room = np.random.default_rng(count).integers(1, 101, count)
    plan = plan_rows(room, 100, seed=0)
    assert sorted(plan.pieces.tolist()) == list(range(count))
    rows = [plan.row(number) for number in range(len(plan.starts) - 1)]
    assert [*itertools.chain(*rows)] == plan.pieces.tolist()
    assert all(row and room[row].sum() <= 100 for row in rows)


def test_rows_are_nearly_full() -> None:
    """Documents of every length leave less than one token in fifty empty."""
    room = np.random.default_rng(0).integers(24, 1026, 20_000)
    plan = plan_rows(room, 1025, seed=0)
    assert room.sum() / (1025 * (len(plan.starts) - 1)) > 0.98


def test_plan_follows_from_rooms_and_seed() -> None:
    room = np.random.default_rng(0).integers(1, 101, 500)
    plans = [plan_rows(room, 100, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(plans[0].pieces, plans[1].pieces)
    assert np.array_equal(plans[0].starts, plans[1].starts)
    assert not np.array_equal(plans[0].pieces, plans[2].pieces)


def test_a_piece_that_fits_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"room\[1\]: 101 tokens, expected at most the window"):
        plan_rows(np.array([5, 101, 7]), 100, seed=0)


def test_row_order_is_a_permutation_of_its_own_in_every_epoch_and_seed() -> None:
    orders = [
        row_order(50, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 6
    assert orders[0] == row_order(50, seed=0, epoch=0).tolist()


def test_plan_and_order_are_what_they_were() -> None:
    """Golden: others would resume a run on other rows. By NumPy's Philox and SeedSequence."""
    plan = plan_rows(np.arange(5, 17), 30, seed=7)
    assert plan.pieces.tolist() == [8, 9, 2, 11, 1, 10, 3, 0, 7, 5, 4, 6]
    assert plan.starts.tolist() == [0, 2, 5, 8, 10, 12]
    assert row_order(12, seed=7, epoch=3).tolist() == [9, 2, 0, 7, 11, 10, 8, 1, 3, 5, 6, 4]


def test_separate_documents_start_anew_and_padding_is_no_segment() -> None:
    row = row_of([plain(5, 6, 0), plain(7, 8), plain(9)])
    assert row.tokens.tolist() == [5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0, 0]
    assert row.segment_ids.tolist() == [1, 1, 1, 2, 2, 3, 0, 0, 0, 0, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert [array.dtype for array in row] == [np.int32, np.int32, np.int32, np.float32]


def test_the_mask_goes_by_segment_and_never_by_id() -> None:
    """eos has the id of padding here: the first is learnt, the others are not.

    A script that masks wherever the token is the padding token never learns to stop.
    """
    row = row_of([plain(5, 6, 0), plain(7, 8), plain(9)])
    assert row.loss_mask.tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    joined = row_of([plain(5, 6, 0), plain(7, 8), plain(9)], JOINED)
    assert joined.loss_mask.tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_joined_documents_are_one_segment_whose_positions_run_on() -> None:
    """BigCode's form, whose fim_pad however was learnt; padding is no target here."""
    row = row_of([plain(5, 6, 0), plain(7, 8, 0)], JOINED)
    assert row.segment_ids.tolist() == [1] * 6 + [0] * 6
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0]


def test_a_full_row_has_no_padding() -> None:
    row = row_of([plain(*range(20, 20 + WINDOW))])
    assert row.segment_ids.tolist() == [1] * WINDOW
    assert row.positions.tolist() == list(range(WINDOW))
    assert row.loss_mask.all()


@pytest.mark.parametrize("documents", ["separate", "joined"])
def test_loss_on_the_middle_counts_its_tokens_and_eos_alone(documents: str) -> None:
    """Targets: of 1 40 3 41 2 42 43 0 those are 42 43 0, predicted from the position before."""
    example = permuted(1, 40, 3, 41, 2, 42, 43, 0, middle=3)
    row = row_of([plain(5, 0), example], dataclasses.replace(MIDDLE, documents=documents))
    targets = row.tokens[1:][row.loss_mask == 1]
    assert targets.tolist() == [42, 43, 0]
    assert np.flatnonzero(row.loss_mask).tolist() == [6, 7, 8]


def test_a_middles_weight_is_that_of_its_tokens_and_eos_alone() -> None:
    config = BatchConfig(middle_weight=2.5)
    row = row_of([plain(5, 0), permuted(1, 40, 3, 41, 2, 42, 43, 0, middle=3)], config)
    assert row.loss_mask.tolist() == [1, 0, 1, 1, 1, 1, 2.5, 2.5, 2.5, 0, 0]


def test_an_empty_middle_leaves_its_eos() -> None:
    row = row_of([permuted(1, 40, 3, 41, 2, 0, middle=1)], MIDDLE)
    assert np.flatnonzero(row.loss_mask).tolist() == [4]


def test_rows_without_a_middle_and_without_a_token_have_a_mask_of_zeros() -> None:
    assert not row_of([plain(5, 6, 7)], MIDDLE).loss_mask.any()
    for config in (SEPARATE, JOINED, MIDDLE):
        empty = row_of([], config)
        assert not empty.loss_mask.any() and not empty.segment_ids.any()


def test_examples_without_ids_leave_no_trace() -> None:
    with_empty = row_of([plain(), plain(5, 6), plain(), plain(7)])
    without = row_of([plain(5, 6), plain(7)])
    assert all(map(np.array_equal, with_empty, without))


def test_too_many_ids_are_refused_not_cut_off() -> None:
    """Megatron cuts what is too long, often a middle's end."""
    with pytest.raises(ValueError, match="examples: 13 ids together, expected at most the window"):
        row_of([plain(*range(7)), plain(*range(6))])


def logits_of(row: Row, config: ModelConfig) -> np.ndarray:
    """Logits [T, V] of the tiny model for one row, as the train step calls it."""
    tokens, segment_ids, positions = (
        array[None, :-1] for array in (row.tokens, row.segment_ids, row.positions)
    )
    arguments = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
    return np.asarray(forward(GPTBigCode(config), random_params(config), arguments)[0])[0]


def test_no_attention_across_documents(tiny_config: ModelConfig) -> None:
    """Another first document leaves the logits of the second bitwise as they were."""
    second = plain(30, 31, 32, 33)
    first, other = plain(20, 21, 22, 0), plain(120, 121, 122, 400)
    separate = [logits_of(row_of([document, second]), tiny_config) for document in (first, other)]
    assert np.array_equal(separate[0][4:8], separate[1][4:8])
    assert not np.array_equal(separate[0][:4], separate[1][:4])
    joined = [
        logits_of(row_of([document, second], JOINED), tiny_config) for document in (first, other)
    ]
    assert not np.array_equal(joined[0][4:8], joined[1][4:8]), "joined documents do attend"


def test_a_packed_document_is_computed_as_if_alone(tiny_config: ModelConfig) -> None:
    """Positions are reset too: the same logits wherever in a row it stands."""
    document = plain(30, 31, 32, 33)
    alone = logits_of(row_of([document]), tiny_config)[:4]
    packed = logits_of(row_of([plain(20, 21, 22, 0), document]), tiny_config)[4:8]
    np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-5)
