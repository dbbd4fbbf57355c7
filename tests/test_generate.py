"""Generation: the reference's tokens, whatever the batch, the buckets and the pieces are."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import GPT2, MHA, random_params, random_tensors, random_tokens, to_jax
from model_cases import MQA as TIED_MQA

from jaxcoder import cache as cache_module
from jaxcoder import generate, reference
from jaxcoder.cache import init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.generate import (
    DECODE_STEPS,
    DecodeState,
    check_request,
    decode_chunk,
    generate_chunks,
    length_bucket,
    prefill,
)
from jaxcoder.hf_names import params_from_hf
from jaxcoder.model import GPTBigCode
from jaxcoder.sampling import SamplingParams, sampling_params

# A separate head: with a tied one a random model repeats its last token.
MQA = dataclasses.replace(TIED_MQA, tie_word_embeddings=False)
CONFIGS = {
    "mqa": MQA,
    "mha": dataclasses.replace(MHA, tie_word_embeddings=False),
    "gpt2": dataclasses.replace(GPT2, tie_word_embeddings=False),
}

LOGPROB_TOLERANCE = 1e-4
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compiles() -> list[str]:
    """Grows by one entry for every program that XLA compiles in this process."""
    events: list[str] = []

    def record(event: str, duration: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(record)
    return events


def prompts_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Random prompts of these lengths, without the id 0 that padding uses."""
    tokens = random_tokens(sum(lengths), seed=seed, vocab_size=MQA.vocab_size - 1) + 1
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def run(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    sampling: SamplingParams | None = None,
    params: dict | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All new tokens [B, T] and their log-probabilities, of `random_params` and greedy unless."""
    chunks = list(
        generate_chunks(
            GPTBigCode(config),
            random_params(config) if params is None else params,
            prompts,
            sampling_params(len(prompts)) if sampling is None else sampling,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            stopped=np.zeros(len(prompts), np.bool_),
        )
    )
    tokens = np.concatenate([chunk.tokens for chunk in chunks], axis=1)
    return tokens, np.concatenate([chunk.logprobs for chunk in chunks], axis=1)


def reference_greedy(
    config: ModelConfig, prompt: Sequence[int], count: int, *, penalty: float = 1.0
) -> tuple[list[int], list[float]]:
    """`count` tokens by argmax of the float64 reference over the whole text, and their log-probs.

    With a penalty, on the text so far, as in arXiv:1909.05858; log-probs are without it.
    """
    tensors, text, logprobs = random_tensors(config), list(prompt), []
    for _ in range(count):
        logits = reference.forward(tensors, config, np.array(text)).logits[-1]
        penalised = logits.copy()
        for token in set(text):
            penalised[token] *= penalty if logits[token] < 0 else 1 / penalty
        top_two = np.sort(penalised)[-2:]
        assert top_two[1] - top_two[0] > 1e-4, "the choice is too close to call in float32"
        text.append(int(penalised.argmax()))
        logprobs.append(reference.log_softmax(logits)[text[-1]])
    return text[len(prompt) :], logprobs


# What is generated.


@pytest.mark.parametrize("case", CONFIGS)
def test_greedy_tokens_and_logprobs_equal_the_reference(case: str) -> None:
    """Three prompts of different lengths in one batch, over two chunks."""
    config = CONFIGS[case]
    prompts, count = prompts_of(1, 9, 31), DECODE_STEPS + 4
    tokens, logprobs = run(config, prompts, max_new_tokens=count)
    # The last chunk is as wide as every other; after their last token rows emit -1.
    assert tokens.shape == (3, 2 * DECODE_STEPS)
    assert (tokens[:, count:] == -1).all()
    for row, prompt in enumerate(prompts):
        expected, expected_logprobs = reference_greedy(config, prompt, count)
        assert len(set(expected)) > 3, "a text that repeats itself tells little"
        assert tokens[row, :count].tolist() == expected
        assert np.abs(logprobs[row, :count] - expected_logprobs).max() <= LOGPROB_TOLERANCE


def test_repetition_penalty_counts_prompt_and_text_but_no_padding() -> None:
    """The prompts lack id 0, with which they are padded: it must not count as seen."""
    prompts, count = prompts_of(3, 12), 20
    sampling = sampling_params(2, repetition_penalty=1.6)
    tokens, logprobs = run(MQA, prompts, max_new_tokens=count, sampling=sampling)
    differs = False
    for row, prompt in enumerate(prompts):
        expected, expected_logprobs = reference_greedy(MQA, prompt, count, penalty=1.6)
        differs = differs or expected != reference_greedy(MQA, prompt, count)[0]
        assert tokens[row, :count].tolist() == expected
        assert np.abs(logprobs[row, :count] - expected_logprobs).max() <= LOGPROB_TOLERANCE
    assert differs, "control: the penalty must matter here"


def test_companions_in_the_batch_change_no_token() -> None:
    """Sampled, alone and among others, in first and last place: only its own key matters."""
    prompt, *others = prompts_of(7, 1, 20, 30)
    count = 24

    def sampling(samples: list[int]) -> SamplingParams:
        return sampling_params(
            len(samples), temperature=1.2, top_p=0.95, seed=5, samples=np.array(samples)
        )

    alone, _ = run(MQA, [prompt], max_new_tokens=count, sampling=sampling([3]))
    first, _ = run(MQA, [prompt, *others], max_new_tokens=count, sampling=sampling([3, 0, 1, 2]))
    last, _ = run(MQA, [*others[:2], prompt], max_new_tokens=count, sampling=sampling([8, 7, 3]))
    assert np.array_equal(first[0], alone[0])
    assert np.array_equal(last[2], alone[0])
    again, _ = run(MQA, [prompt, prompt], max_new_tokens=count, sampling=sampling([3, 4]))
    assert np.array_equal(again[0], alone[0])
    assert not np.array_equal(again[1], alone[0])


def swap_ids(first: int, second: int) -> tuple[dict, np.ndarray]:
    """Parameters of the model with two ids exchanged, and the new id of each old one."""
    tensors = random_tensors(MQA)
    new_ids = np.arange(MQA.vocab_size)
    new_ids[[first, second]] = second, first
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = tensors[name][new_ids]
    return to_jax(params_from_hf(tensors, MQA)), new_ids


@pytest.mark.parametrize("eos", [7, 0])
def test_an_end_of_text_id_is_emitted_and_ends_its_row_alone(eos: int) -> None:
    """Id 0 is an end like any other. Ids are renamed so that one row emits `eos` fifth."""
    prompts, count = prompts_of(5, 9), 30
    free, _ = run(MQA, prompts, max_new_tokens=count)
    end = next(t for t in range(4, count) if free[0, t] not in [*free[0, :t], *free[1, :count]])
    params, new_ids = swap_ids(int(free[0, end]), eos)
    renamed = [new_ids[prompt].tolist() for prompt in prompts]
    tokens, _ = run(MQA, renamed, max_new_tokens=count, eos_ids=[58, eos], params=params)
    if 58 in tokens:
        pytest.fail("58 must not occur by itself")
    assert tokens[0, : end + 1].tolist() == new_ids[free[0, : end + 1]].tolist()
    assert tokens[0, end] == eos
    assert (tokens[0, end + 1 :] == -1).all()
    assert tokens[1, :count].tolist() == new_ids[free[1, :count]].tolist()


def test_generation_ends_with_the_chunk_in_which_all_rows_end() -> None:
    prompt = prompts_of(5)[0]
    free, _ = run(MQA, [prompt], max_new_tokens=8)
    tokens, _ = run(MQA, [prompt], max_new_tokens=50, eos_ids=[int(free[0, 3])])
    end = free[0].tolist().index(free[0, 3])
    assert tokens.shape == (1, DECODE_STEPS)
    assert tokens[0, : end + 1].tolist() == free[0, : end + 1].tolist()


def test_no_new_tokens_is_one_empty_chunk() -> None:
    tokens, logprobs = run(MQA, prompts_of(5, 2), max_new_tokens=0)
    assert tokens.shape == logprobs.shape == (2, 0)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_rows_the_caller_stops_emit_nothing_more(after: int) -> None:
    """Set after the empty chunk that follows prefill, or after any later one."""
    prompts = prompts_of(5, 9, 3)
    free, _ = run(MQA, prompts, max_new_tokens=40)
    stopped = np.zeros(3, np.bool_)
    chunks = []
    for chunk in generate_chunks(
        GPTBigCode(MQA),
        random_params(MQA),
        prompts,
        sampling_params(3),
        max_new_tokens=40,
        eos_ids=(),
        stopped=stopped,
    ):
        chunks.append(chunk.tokens)
        if len(chunks) == after + 1:
            stopped[1] = True
    tokens = np.concatenate(chunks, axis=1)
    assert np.array_equal(tokens[[0, 2]], free[[0, 2]])
    emitted = after * DECODE_STEPS
    assert np.array_equal(tokens[1, :emitted], free[1, :emitted])
    assert (tokens[1, emitted:] == -1).all()


def test_rows_stopped_from_the_start_emit_nothing() -> None:
    chunks = generate_chunks(
        GPTBigCode(MQA),
        random_params(MQA),
        prompts_of(5, 9),
        sampling_params(2),
        max_new_tokens=40,
        eos_ids=(),
        stopped=np.ones(2, np.bool_),
    )
    assert [chunk.tokens.shape for chunk in chunks] == [(2, 0)]


def test_logits_that_are_not_numbers_are_an_error() -> None:
    params = random_params(MQA)
    params["ln_f"]["bias"] = params["ln_f"]["bias"].at[3].set(jnp.nan)
    with pytest.raises(ValueError, match="logits that are not numbers; check its weights"):
        run(MQA, prompts_of(5), max_new_tokens=4, params=params)


# Buckets, pieces and limits.


def test_growing_through_the_capacities_changes_no_token_up_to_the_last_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """12 + 116 tokens fill all 128 positions, through buffers of 32, 64 and 128 slots."""
    config = dataclasses.replace(MQA, n_positions=128, n_layer=1)
    prompts, count = prompts_of(12, 3), 116
    monkeypatch.setattr(cache_module, "SMALLEST_CAPACITY", 128)
    large, _ = run(config, prompts, max_new_tokens=count)
    growth = []
    grow_state = generate._grow_state

    def recorded(state: DecodeState, capacity: int) -> DecodeState:
        growth.append((state.cache.capacity, capacity))
        return grow_state(state, capacity)

    monkeypatch.setattr(cache_module, "SMALLEST_CAPACITY", 32)
    monkeypatch.setattr(generate, "_grow_state", recorded)
    grown, _ = run(config, prompts, max_new_tokens=count)
    assert growth == [(32, 64), (64, 128)]
    assert np.array_equal(grown, large)
    assert grown[0, :count].tolist() == reference_greedy(config, prompts[0], count)[0]


def test_a_text_beyond_the_last_position_is_refused_before_anything_compiles(
    compiles: list[str],
) -> None:
    config = dataclasses.replace(MQA, n_positions=50)
    params = random_params(config)
    before = len(compiles)
    expected = r"prompt 1: 30 prompt tokens \+ 21 new tokens exceed the model's 50 positions"
    with pytest.raises(ValueError, match=expected):
        run(config, prompts_of(5, 30), max_new_tokens=21, params=params)
    assert len(compiles) == before
    tokens, _ = run(config, prompts_of(5, 30), max_new_tokens=20, params=params)
    assert (tokens[:, :20] >= 0).all()
    assert len(compiles) > before, "control: compiles are counted"


def test_a_long_prompt_in_pieces_gives_the_tokens_of_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pieces of 16 and a last one of 8; short rows have no tokens in the later pieces."""
    prompts = prompts_of(40, 3, 17, 32)
    sampling = sampling_params(4, repetition_penalty=1.3)
    at_once, expected = run(MQA, prompts, max_new_tokens=20, sampling=sampling)
    lengths = []
    real_prefill = generate.prefill

    def recorded(
        model: GPTBigCode,
        params: dict,
        state: DecodeState,
        tokens: np.ndarray,
        counts: np.ndarray,
    ) -> DecodeState:
        lengths.append((tokens.shape[1], counts.tolist()))
        return real_prefill(model, params, state, tokens, counts)

    monkeypatch.setattr(generate, "SHORTEST_PIECE", 8)
    monkeypatch.setattr(generate, "PREFILL_PIECE", 16)
    monkeypatch.setattr(generate, "prefill", recorded)
    in_pieces, logprobs = run(MQA, prompts, max_new_tokens=20, sampling=sampling)
    assert lengths == [(16, [16, 3, 16, 16]), (16, [16, 0, 1, 16]), (8, [8, 0, 0, 0])]
    assert np.array_equal(in_pieces, at_once)
    assert np.abs(logprobs - expected)[at_once >= 0].max() <= LOGPROB_TOLERANCE


@pytest.mark.parametrize(
    ("tokens", "bucket"),
    [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (1000, 1024), (1024, 1024), (9000, 1024)],
)
def test_length_buckets_are_powers_of_two(tokens: int, bucket: int) -> None:
    assert length_bucket(tokens) == bucket


REFUSED: dict[str, tuple[list, object, str]] = {
    "empty prompt": ([[1], []], 1, "prompt 1 is empty, expected at least one token"),
    "negative id": ([[1, 2, -1]], 1, "prompt 0: token -1 at position 2, expected ids from 0 to 60"),
    "id too large": ([[1], [61]], 1, "prompt 1: token 61 at position 0, expected ids from 0 to 60"),
    "fraction": ([[1, 2.5]], 1, r"prompt 0 is float64 of shape \[2\], expected a flat list of int"),
    "text": ([["a"]], 1, r"prompt 0 is <U1 of shape \[1\], expected a flat list of integer ids"),
    "truth": ([[True]], 1, r"prompt 0 is bool of shape \[1\], expected a flat list of integer ids"),
    "huge id": ([[2**70]], 1, r"prompt 0 is object of shape \[1\], expected a flat list of int"),
    "nested": ([[[1, 2]]], 1, r"prompt 0 is int64 of shape \[1, 2\], expected a flat list of int"),
    "negative count": ([[1]], -1, "max_new_tokens is -1, expected an integer of at least 0"),
    "fractional count": ([[1]], 2.5, "max_new_tokens is 2.5, expected an integer of at least 0"),
    "truth as count": ([[1]], True, "max_new_tokens is True, expected an integer of at least 0"),
    "too long": ([[1] * 60], 5, r"60 prompt tokens \+ 5 new tokens exceed the model's 64 pos"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_requests_the_model_cannot_do_are_refused(case: str) -> None:
    prompts, max_new_tokens, expected = REFUSED[case]
    with pytest.raises(ValueError, match=expected):
        check_request(MQA, prompts, max_new_tokens)


def test_lists_and_arrays_of_any_integer_type_are_accepted() -> None:
    for prompt in ([0, 60], np.array([0, 60], np.uint16), (np.int64(3),)):
        check_request(MQA, [prompt], np.int64(62))
    check_request(MQA, [[1] * 64], 0)


# Programs and memory.


def empty_state(config: ModelConfig, rows: int, capacity: int) -> DecodeState:
    return DecodeState(
        logits=jnp.zeros((rows, config.vocab_size)),
        seen=jnp.zeros((rows, config.vocab_size), bool),
        cache=init_cache(config, rows, capacity, np.float32),
        remaining=jnp.full(rows, 5, jnp.int32),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_old_state_is_given_up_to_the_new_one(dtype: jnp.dtype) -> None:
    """Donated: no second copy of the cache lives. An unusable donation warns, an error in tests."""
    model, params = GPTBigCode(MQA, dtype=dtype), random_params(MQA)
    tokens, counts = random_tokens(2, 32), np.array([4, 7], np.int32)
    empty = empty_state(MQA, 2, 48)
    empty = empty._replace(cache=init_cache(MQA, 2, 48, dtype))
    prefilled = prefill(model, params, empty, tokens, counts)
    eos, stopped = np.array([-1], np.int32), np.zeros(2, np.bool_)
    decoded, _, _ = decode_chunk(model, params, prefilled, sampling_params(2), eos, stopped)
    # Five tokens each, of which the last one is not fed back.
    assert np.array_equal(decoded.cache.lengths, counts + 4)
    assert np.array_equal(decoded.remaining, [0, 0])
    for old in (empty, prefilled):
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.cache.layers, old.seen)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((decoded, params)))


def test_prefill_gives_each_row_its_own_logits_length_and_seen_tokens() -> None:
    """A row's padding changes nothing, and a row without tokens keeps what it had."""
    params = random_params(MQA)
    tokens, counts = random_tokens(4, 32), np.array([4, 7, 0, 32], np.int32)
    state = empty_state(MQA, 4, 48)
    state = state._replace(logits=state.logits + 5, remaining=jnp.array([1, 2, 3, 4], jnp.int32))
    after = prefill(GPTBigCode(MQA), params, state, tokens, counts)
    assert np.array_equal(after.cache.lengths, counts)
    assert np.array_equal(after.remaining, [1, 2, 3, 4])
    tensors = random_tensors(MQA)
    for row, count in enumerate(counts):
        assert np.flatnonzero(after.seen[row]).tolist() == sorted(set(tokens[row, :count].tolist()))
        if count == 0:
            assert np.array_equal(after.logits[row], np.full(MQA.vocab_size, 5))
        else:
            expected = reference.forward(tensors, MQA, tokens[row, :count]).logits[-1]
            assert np.abs(after.logits[row] - expected).max() <= LOGPROB_TOLERANCE


class Buckets:
    """Which (length bucket, capacity) pairs calls have run in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: set[tuple[int, int]] = set()
        self._length = 0
        real_prefill, real_decode = generate.prefill, generate.decode_chunk

        def recorded_prefill(
            model: GPTBigCode,
            params: dict,
            state: DecodeState,
            tokens: np.ndarray,
            counts: np.ndarray,
        ) -> DecodeState:
            self._length = tokens.shape[1]
            self.pairs.add((self._length, state.cache.capacity))
            return real_prefill(model, params, state, tokens, counts)

        def recorded_decode(
            model: GPTBigCode,
            params: dict,
            state: DecodeState,
            sampling: SamplingParams,
            eos_ids: np.ndarray,
            stopped: np.ndarray,
        ) -> tuple[DecodeState, jax.Array, jax.Array]:
            self.pairs.add((self._length, state.cache.capacity))
            return real_decode(model, params, state, sampling, eos_ids, stopped)

        monkeypatch.setattr(generate, "prefill", recorded_prefill)
        monkeypatch.setattr(generate, "decode_chunk", recorded_decode)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    monkeypatch.setattr(cache_module, "SMALLEST_CAPACITY", 32)
    monkeypatch.setattr(generate, "SHORTEST_PIECE", 16)
    monkeypatch.setattr(generate, "PREFILL_PIECE", 32)
    return Buckets(monkeypatch)


def random_call(config: ModelConfig, params: dict, rng: np.random.Generator) -> None:
    """One prompt of random length, with random arguments of every kind."""
    length = int(rng.integers(1, config.n_positions))
    run(
        config,
        [rng.integers(0, config.vocab_size, length).tolist()],
        max_new_tokens=int(rng.integers(0, config.n_positions - length + 1)),
        eos_ids=[int(rng.integers(0, config.vocab_size))],
        sampling=sampling_params(
            1,
            temperature=float(rng.choice([0.0, 0.5, 1.1])),
            top_k=int(rng.integers(0, 20)),
            top_p=float(rng.uniform(0.1, 1.0)),
            repetition_penalty=float(rng.uniform(0.8, 1.5)),
            seed=int(rng.integers(0, 2**63)),
        ),
        params=params,
    )


def test_60_random_calls_compile_two_programs_for_each_pair_of_buckets(
    compiles: list[str], small_buckets: Buckets
) -> None:
    """Every compile of the process counts, so no helper on the host compiles by shape or value."""
    # A shape of its own, so that no other test has compiled for it.
    config = dataclasses.replace(MQA, n_layer=1, n_embd=18, n_positions=48)
    params = random_params(config)
    rng = np.random.default_rng(0)
    before = len(compiles)
    for _ in range(60):
        random_call(config, params, rng)
    pairs = small_buckets.pairs
    assert pairs == {(16, 32), (32, 32), (16, 48), (32, 48)}
    assert 0 < len(compiles) - before <= 2 * len(pairs)

    warm = len(compiles)
    for _ in range(20):
        random_call(config, params, rng)
    assert len(compiles) == warm


def test_batches_of_three_and_four_share_their_programs(compiles: list[str]) -> None:
    """A batch is padded to a power of two; the model has a shape of its own here too."""
    config = dataclasses.replace(MQA, n_layer=1, n_embd=12)
    params = random_params(config)
    before = len(compiles)
    run(config, prompts_of(3, 4, 5, 6), max_new_tokens=4, params=params)
    assert len(compiles) == before + 2
    run(config, prompts_of(3, 9, 2), max_new_tokens=9, params=params)
    assert len(compiles) == before + 2


def test_once_all_rows_have_ended_a_chunk_computes_no_more_tokens() -> None:
    """The skip inside a chunk: the slot a further token would take stays as it was."""

    def slots_written(budget: int) -> int:
        state = empty_state(MQA, rows=1, capacity=64)
        state = state._replace(remaining=np.array([budget], np.int32))
        state, _, _ = decode_chunk(
            GPTBigCode(MQA),
            random_params(MQA),
            state,
            sampling_params(1),
            np.array([-1], np.int32),
            np.zeros(1, np.bool_),
        )
        return int((np.asarray(state.cache.layers[0])[0] != 0).any(axis=(1, 2)).sum())

    # The last token is drawn and not fed back.
    assert [slots_written(budget) for budget in (1, 2, 5)] == [0, 1, 4]
    assert slots_written(100) == DECODE_STEPS


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16])
def test_a_small_numpy_count_does_not_wrap_around(kind: type[np.integer]) -> None:
    """As np.uint8, 60 + 255 was 59, and positions beyond the last were clamped silently."""
    count = kind(np.iinfo(kind).max)
    with pytest.raises(ValueError, match=rf"60 prompt tokens \+ {count} new"):
        check_request(MQA, [[1] * 60], count)
