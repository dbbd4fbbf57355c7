"""Draws follow the law that the arguments name, and depend on nothing but their own row.

The law is written here once more, in NumPy float64, from transformers' definitions: repetition
penalty, then temperature, then top-k, then top-p.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxcoder.cache import init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.generate import DecodeState, decode_chunk
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.sampling import SamplingParams, draw, process_logits, sampling_params

VOCAB_SIZE = 512
ROWS, BATCHES = 4096, 25
DRAWS = ROWS * BATCHES  # 102,400
# Over all settings together a correct sampler fails one run in a thousand; seeds are fixed.
ALPHA = 0.001

CONFIG = ModelConfig(
    vocab_size=VOCAB_SIZE, n_positions=64, n_embd=8, n_layer=1, n_head=1, n_inner=8
)
LOGITS = (2 * np.random.default_rng(0).standard_normal(VOCAB_SIZE)).astype(np.float32)
SEEN = np.random.default_rng(1).random(VOCAB_SIZE) < 0.3


class Setting(NamedTuple):
    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def params(
        self, rows: int, *, seed: int = 0, samples: np.ndarray | None = None
    ) -> SamplingParams:
        return sampling_params(
            rows,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
            samples=samples,
        )


def joined(parts: list[SamplingParams]) -> SamplingParams:
    """The rows of all parts in one batch."""
    return SamplingParams(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


SETTINGS = [
    Setting(temperature, top_k, top_p, penalty)
    for temperature in (0.5, 1.0, 1.7)
    for top_k, top_p in ((None, None), (20, None), (None, 0.8), (50, 0.9))
    for penalty in (1.0, 1.3)
]


@functools.cache
def model_and_params(*, scale: float = 1.0) -> tuple[GPTBigCode, dict]:
    """A model of one layer; at scale 0 all its logits are equal whatever it reads."""
    model = GPTBigCode(CONFIG)
    params = init_params(model, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: leaf * scale, params)


def decode(
    logits: np.ndarray,
    sampling: SamplingParams,
    *,
    seen: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    steps: int = 1,
    scale: float = 1.0,
) -> np.ndarray:
    """Tokens [B, steps] that `decode_chunk` itself draws, the first ones from `logits` [B, V].

    Rows may emit `steps` tokens; after the last one `decode_chunk` skips the model.
    """
    rows = len(logits)
    cache = init_cache(CONFIG, rows, 32, np.float32)
    if positions is not None:
        cache = cache._replace(lengths=jnp.asarray(positions, jnp.int32))
    state = DecodeState(
        logits=jnp.asarray(logits),
        seen=jnp.zeros(logits.shape, bool) if seen is None else jnp.asarray(seen),
        cache=cache,
        remaining=jnp.full(rows, steps, jnp.int32),
    )
    model, params = model_and_params(scale=scale)
    no_eos, running = np.array([-1], np.int32), np.zeros(rows, np.bool_)
    _, tokens, _ = decode_chunk(model, params, state, sampling, no_eos, running, steps=steps)
    return np.asarray(tokens)


_process_logits = jax.jit(process_logits)


def processed(logits: np.ndarray, setting: Setting, seen: np.ndarray | None = None) -> np.ndarray:
    """`process_logits` of one row [V]."""
    seen = np.zeros_like(logits, np.bool_) if seen is None else seen
    return np.asarray(_process_logits(logits[None], seen[None], setting.params(1)))[0]


# The law of one draw.


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def penalised(logits: np.ndarray, penalty: float) -> np.ndarray:
    logits = logits.astype(np.float64)
    return np.where(SEEN, np.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered(logits: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """Float64 logits with -inf for what top-k, then top-p, exclude."""
    if top_k is not None:
        logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
    if top_p is not None:
        probs = softmax(logits)
        order = np.argsort(-probs)
        before = np.cumsum(probs[order]) - probs[order]
        assert np.abs(before - top_p).min() > 1e-5, "the cut is too close to call in float32"
        kept = np.isin(np.arange(len(logits)), order[before < top_p])
        logits = np.where(kept, logits, -np.inf)
    return logits


def law(setting: Setting) -> np.ndarray:
    """Probabilities [V] of a draw from `LOGITS`."""
    logits = penalised(LOGITS, setting.repetition_penalty) / setting.temperature
    return softmax(filtered(logits, setting.top_k, setting.top_p))


def law_with_temperature_last(setting: Setting) -> np.ndarray:
    """A wrong law: the temperature applied to what top-p has left."""
    logits = penalised(LOGITS, setting.repetition_penalty)
    return softmax(filtered(logits, setting.top_k, setting.top_p) / setting.temperature)


class Fit(NamedTuple):
    """How well counts fit a law."""

    p_value: float
    """Of the chi-square test on the law's support."""
    outside: int
    """Draws that the law excludes."""

    def passes(self) -> bool:
        return self.outside == 0 and self.p_value > ALPHA / len(SETTINGS)


def fit(tokens: np.ndarray, probs: np.ndarray) -> Fit:
    """Chi-square of `tokens` against `probs` [V]; bins expecting fewer than 5 are merged."""
    counts = np.bincount(tokens, minlength=len(probs))
    order = np.argsort(probs)
    observed, expected, bins = 0.0, 0.0, []
    for token in order[probs[order] > 0]:
        observed, expected = observed + counts[token], expected + probs[token] * len(tokens)
        if expected >= 5:
            bins.append((observed, expected))
            observed, expected = 0.0, 0.0
    table = np.array(bins)
    table[-1] += observed, expected
    statistic = ((table[:, 0] - table[:, 1]) ** 2 / table[:, 1]).sum()
    p_value = scipy.stats.chi2.sf(statistic, len(table) - 1)
    return Fit(float(p_value), int(counts[probs == 0].sum()))


def batch(setting: Setting, index: int) -> tuple[SamplingParams, np.ndarray]:
    """Sampling parameters and positions of one of the `BATCHES`; no two draws share a key."""
    positions = np.arange(ROWS, dtype=np.int32) % 32
    return setting.params(ROWS, seed=index, samples=np.arange(ROWS)), positions


def decoded_batch(setting: Setting, index: int) -> np.ndarray:
    """`ROWS` tokens that `decode_chunk` draws from `LOGITS`."""
    sampling, positions = batch(setting, index)
    rows = (ROWS, 1)
    tokens = decode(np.tile(LOGITS, rows), sampling, seen=np.tile(SEEN, rows), positions=positions)
    return tokens[:, 0]


@jax.jit
def _draw_for_settings(
    processed: jax.Array, sampling: SamplingParams, positions: jax.Array
) -> jax.Array:
    """Tokens [settings, ROWS] from processed logits [settings, V]: one noise for all settings.

    Of `sampling`, `draw` reads the key and whether the temperature is above 0.
    """

    def draw_rows(logits: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(logits[None, :], (ROWS, VOCAB_SIZE))
        return draw(rows, sampling, positions)

    return jax.vmap(draw_rows)(processed)


@pytest.fixture(scope="module")
def many_draws() -> dict[Setting, np.ndarray]:
    """`DRAWS` tokens for each setting, by `decode_chunk`'s own two steps: filters, then a draw.

    The filters run once for a setting and the noise once for all settings, since 4096 equal sorts
    tell nothing that one does not. That this is what `decode_chunk` draws is a test of its own.
    """
    logits = np.stack([processed(LOGITS, setting, SEEN) for setting in SETTINGS])
    batches = [
        np.asarray(_draw_for_settings(logits, *batch(SETTINGS[0], index)))
        for index in range(BATCHES)
    ]
    return dict(zip(SETTINGS, np.concatenate(batches, axis=1), strict=True))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_decode_chunk_draws_exactly_these(
    setting: Setting, many_draws: dict[Setting, np.ndarray]
) -> None:
    """4096 of the draws below, token by token, through `decode_chunk` itself."""
    assert np.array_equal(decoded_batch(setting, 1), many_draws[setting][ROWS : 2 * ROWS])


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_follow_the_law(setting: Setting, many_draws: dict[Setting, np.ndarray]) -> None:
    tokens = many_draws[setting]
    assert len(tokens) == DRAWS >= 100_000
    result = fit(tokens, law(setting))
    assert result.outside == 0
    assert result.p_value > ALPHA / len(SETTINGS)


@pytest.mark.nightly
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_draw_by_decode_chunk_follows_the_law(setting: Setting) -> None:
    """The same with all draws through `decode_chunk`, which sorts for each of them."""
    tokens = np.concatenate([decoded_batch(setting, index) for index in range(BATCHES)])
    assert fit(tokens, law(setting)).passes()


WRONG_LAWS: dict[str, tuple[Setting, Callable[[Setting], np.ndarray]]] = {
    "k + 1": (Setting(1.0, top_k=20), lambda s: law(s._replace(top_k=21))),
    "k - 1": (Setting(1.0, top_k=20), lambda s: law(s._replace(top_k=19))),
    "wider p": (Setting(1.0, top_p=0.8), lambda s: law(s._replace(top_p=0.805))),
    "narrower p": (Setting(1.0, top_p=0.8), lambda s: law(s._replace(top_p=0.795))),
    "temperature last": (Setting(1.7, top_p=0.8), law_with_temperature_last),
    "another temperature": (Setting(1.0), lambda s: law(s._replace(temperature=1.03))),
    "no penalty": (
        Setting(1.0, repetition_penalty=1.3),
        lambda s: law(s._replace(repetition_penalty=1.0)),
    ),
}


@pytest.mark.parametrize("wrong", WRONG_LAWS)
def test_draws_fail_a_slightly_wrong_law(wrong: str, many_draws: dict[Setting, np.ndarray]) -> None:
    """Control: the test above has the power to tell these apart."""
    setting, wrong_law = WRONG_LAWS[wrong]
    tokens = many_draws[setting]
    assert fit(tokens, law(setting)).passes()
    assert not fit(tokens, wrong_law(setting)).passes()


@pytest.mark.parity
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_processed_logits_equal_transformers(setting: Setting) -> None:
    """The same tokens are left, with the same values but for a constant, on logits without ties."""
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(setting.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(setting.temperature))
    if setting.top_k is not None:
        processors.append(TopKLogitsWarper(setting.top_k))
    if setting.top_p is not None:
        processors.append(TopPLogitsWarper(setting.top_p))
    seen_ids = torch.from_numpy(np.flatnonzero(SEEN))[None]
    expected = processors(seen_ids, torch.from_numpy(LOGITS)[None])[0].numpy()
    got = processed(LOGITS, setting, SEEN)
    kept = np.isfinite(expected)
    assert np.array_equal(np.isfinite(got), kept)
    assert np.abs((got - got.max())[kept] - (expected - expected.max())[kept]).max() < 1e-5


# Ties and edges.


def kept_ids(logits: np.ndarray, setting: Setting) -> list[int]:
    return np.flatnonzero(np.isfinite(processed(logits, setting))).tolist()


def test_ties_at_the_cut_go_to_the_lowest_ids() -> None:
    """transformers keeps all of them, so that top-k keeps more than k; we keep exactly k."""
    tied = np.full(VOCAB_SIZE, -9, np.float32)
    tied[:8] = [1, 3, 2, 2, 2, 2, 0, 3]
    assert kept_ids(tied, Setting(1.0, top_k=1)) == [1]
    assert kept_ids(tied, Setting(1.0, top_k=2)) == [1, 7]
    assert kept_ids(tied, Setting(1.0, top_k=4)) == [1, 2, 3, 7]
    assert kept_ids(tied, Setting(1.0, top_k=7)) == [0, 1, 2, 3, 4, 5, 7]
    uniform = np.zeros(VOCAB_SIZE, np.float32)
    for count in (1, 2, 128, 511):
        assert kept_ids(uniform, Setting(1.0, top_k=count)) == list(range(count))
        assert kept_ids(uniform, Setting(1.0, top_p=count / VOCAB_SIZE)) == list(range(count))
    signed_zeros = np.full(VOCAB_SIZE, -9, np.float32)
    signed_zeros[:4] = [-0.0, 0.0, -0.0, 0.0]
    assert kept_ids(signed_zeros, Setting(1.0, top_k=3)) == [0, 1, 2]


def test_filters_that_keep_everything_change_no_draw() -> None:
    """Off is None, 0, k of at least V, or p of 1; all draw bit for bit the same tokens."""
    logits = np.tile(LOGITS, (64, 1))

    def tokens(setting: Setting) -> np.ndarray:
        return decode(logits, setting.params(64, samples=np.arange(64)))

    plain = tokens(Setting(1.0))
    for top_k, top_p in ((0, None), (512, None), (2**31 - 1, None), (None, 1), (512, 1.0)):
        assert np.array_equal(tokens(Setting(1.0, top_k, top_p)), plain)
    assert not np.array_equal(tokens(Setting(1.0, top_k=5)), plain)


GREEDY = [
    Setting(0.0),
    Setting(0, top_k=7, top_p=0.5),
    Setting(1.0, top_k=1),
    Setting(1.7, top_p=1e-9),
    Setting(1.7, top_p=1e-60),  # 0 in float32
    Setting(1.7, top_k=40, top_p=1e-9),
]


def test_at_temperature_zero_no_token_is_excluded_nor_scaled() -> None:
    """Also beside a row that is filtered."""
    settings = [Setting(0.0, top_k=7, top_p=0.5, repetition_penalty=1.3), Setting(1.0, top_k=7)]
    both = joined([setting.params(1) for setting in settings])
    rows = (2, 1)
    greedy, sampled = np.asarray(_process_logits(np.tile(LOGITS, rows), np.tile(SEEN, rows), both))
    assert np.isfinite(sampled).sum() == 7
    expected = penalised(LOGITS, 1.3)
    assert np.abs(greedy - (expected - expected.max())).max() < 1e-5


@pytest.mark.parametrize("setting", GREEDY, ids=str)
def test_degenerate_settings_take_the_largest_logit_and_the_lowest_id_among_equals(
    setting: Setting,
) -> None:
    logits = np.random.default_rng(2).integers(-3, 4, (64, VOCAB_SIZE)).astype(np.float32)
    assert ((logits == logits.max(-1, keepdims=True)).sum(-1) > 1).all(), "the test needs ties"
    tokens = decode(logits, setting.params(64, samples=np.arange(64)))
    assert np.array_equal(tokens[:, 0], logits.argmax(-1))


def test_repetition_penalty_acts_on_greedy_decoding() -> None:
    """Divides what is positive, multiplies what is negative, of the tokens seen so far."""
    logits = np.full((64, VOCAB_SIZE), -9, np.float32)
    logits[::2, [3, 4]] = 2.0, 1.9
    logits[1::2, [3, 4]] = -1.0, -1.1
    seen = np.zeros((64, VOCAB_SIZE), bool)
    seen[:, 3] = True
    penalty = Setting(0.0, repetition_penalty=1.2).params(64)
    assert (decode(logits, penalty, seen=seen) == 4).all()
    assert (decode(logits, Setting(0.0).params(64), seen=seen) == 3).all()


def test_the_coldest_temperature_keeps_what_large_logits_differ_by() -> None:
    """Dividing 50 by 1e-4 first would round away a difference of 2^-13: it must decide by law."""
    logits = np.full(VOCAB_SIZE, -50, np.float32)
    logits[[7, 9]] = 50, 50 - 2.0**-13
    got = processed(logits, Setting(1e-4))
    assert got[7] == 0
    assert abs(got[9] + 2.0**-13 / 1e-4) < 1e-5
    rows = ROWS
    tokens = decode(np.tile(logits, (rows, 1)), Setting(1e-4).params(rows, samples=np.arange(rows)))
    probability = 1 / (1 + np.exp(-(2.0**-13) / 1e-4))
    assert set(tokens[:, 0].tolist()) == {7, 9}
    share = (tokens[:, 0] == 7).mean()
    assert abs(share - probability) < 5 * np.sqrt(probability * (1 - probability) / rows)


@pytest.mark.parametrize(
    "setting",
    [Setting(0.0), Setting(1.0), Setting(0.7, 400, 0.999), Setting(1.0, repetition_penalty=2.0)],
    ids=str,
)
def test_a_logit_of_minus_infinity_is_never_drawn(setting: Setting) -> None:
    """Also when it is penalised, and when k reaches beyond the finite ones."""
    logits = np.tile(LOGITS, (64, 1))
    logits[:, 5:500] = -np.inf
    tokens = decode(
        logits, setting.params(64, samples=np.arange(64)), seen=np.ones_like(logits, bool)
    )
    assert not np.isin(tokens, np.arange(5, 500)).any()
    got = processed(logits[0], setting, np.ones(VOCAB_SIZE, bool))
    assert not np.isnan(got).any()
    assert got.max() == 0


# What a draw depends on.

UNIFORM = np.zeros((64, VOCAB_SIZE), np.float32)


def test_consecutive_draws_differ() -> None:
    """16 steps on equal logits: neighbours agree about once in 512 draws, not always."""
    tokens = decode(UNIFORM, Setting(1.0).params(64, samples=np.arange(64)), steps=16, scale=0.0)
    assert (tokens >= 0).all()
    assert (tokens[:, 1:] == tokens[:, :-1]).mean() < 0.02
    assert len(np.unique(tokens)) > 300


def test_a_draw_depends_on_its_own_row_alone() -> None:
    """The same (seed, sample, position) and logits give the same token in any batch and place.

    The companions are of all kinds, since one filtered row makes all rows pass the sort.
    """
    kinds = [Setting(1.0), Setting(0.0), Setting(1.3, top_k=30), Setting(0.8, top_p=0.7)]
    kinds.append(Setting(1.1, 40, 0.9, 1.4))
    count = len(kinds)
    rng = np.random.default_rng(3)
    logits = 2 * rng.standard_normal((count, VOCAB_SIZE)).astype(np.float32)
    seen = rng.random((count, VOCAB_SIZE)) < 0.3
    positions = np.array([3, 9, 9, 0, 30])
    alone = [
        kind.params(1, seed=100 + row, samples=np.array([row])) for row, kind in enumerate(kinds)
    ]
    expected = [
        decode(
            logits[row : row + 1],
            alone[row],
            seen=seen[row : row + 1],
            positions=positions[row : row + 1],
        )[0, 0]
        for row in range(count)
    ]
    for _ in range(3):
        order = rng.permutation(count)
        together = joined([alone[row] for row in order])
        tokens = decode(logits[order], together, seen=seen[order], positions=positions[order])
        assert tokens[:, 0].tolist() == [expected[row] for row in order]


def draws_for(
    *, seed: int = 0, samples: np.ndarray | None = None, positions: np.ndarray | None = None
) -> np.ndarray:
    """64 tokens from equal logits at these keys."""
    sampling = Setting(1.0).params(64, seed=seed, samples=samples)
    return decode(UNIFORM, sampling, positions=positions)[:, 0]


def test_seed_sample_and_position_each_change_the_draws() -> None:
    """Both words of the seed count, and sample and position do not stand for each other."""
    ramp, zeros = np.arange(64), np.zeros(64, int)
    variants = {
        "samples": draws_for(samples=ramp, positions=zeros),
        "positions": draws_for(samples=zeros, positions=ramp),
        "another seed": draws_for(seed=1, samples=ramp, positions=zeros),
        "high word": draws_for(seed=1 << 32, samples=ramp, positions=zeros),
        "largest seed": draws_for(seed=2**64 - 1, samples=ramp, positions=zeros),
    }
    for name, tokens in variants.items():
        assert len(np.unique(tokens)) > 50, name
        for other, others in variants.items():
            # Equal by chance once in 512.
            assert name == other or (tokens == others).sum() < 6, (name, other)
    assert len(np.unique(draws_for(samples=zeros, positions=zeros))) == 1
    assert np.array_equal(draws_for(samples=ramp, positions=zeros), variants["samples"])


# Arguments.

BAD_ARGUMENTS: list[tuple[str, object]] = [
    *[("temperature", value) for value in (-1, float("nan"), float("inf"), 1e-30, 1e30, True)],
    *[("temperature", value) for value in ("x", None, 9e-5, 10001, 1j)],
    *[("top_p", value) for value in (0, -0.1, 1.1, float("nan"), True, "0.9")],
    *[("top_k", value) for value in (-1, 2.5, True, "5", 2**31)],
    *[("repetition_penalty", value) for value in (0, -1, float("nan"), float("inf"), None, True)],
    *[("seed", value) for value in (-1, 2**64, 1.5, None, True)],
]


@pytest.mark.parametrize(("name", "value"), BAD_ARGUMENTS, ids=lambda part: repr(part))
def test_arguments_out_of_range_are_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*, expected ") as refusal:
        sampling_params(1, **{name: value})
    assert repr(value) in str(refusal.value)


def test_arguments_at_the_ends_of_their_ranges_are_accepted() -> None:
    """NumPy's numbers too, as they come out of a sweep."""
    for arguments in (
        {"temperature": 1e-4},
        {"temperature": 1e4},
        {"temperature": np.float32(0.5)},
        {"top_p": 1},
        {"top_p": np.float64(1e-9)},
        {"top_k": np.int64(3)},
        {"top_k": 2**31 - 1},
        {"repetition_penalty": 1e-4},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"seed": np.uint64(2**64 - 1)},
    ):
        assert all(len(field) == 3 for field in sampling_params(3, **arguments))


def test_fields_have_the_documented_dtypes_and_words() -> None:
    sampling = sampling_params(2, seed=(7 << 32) + 5, samples=np.array([4, 9]))
    assert [str(field.dtype) for field in sampling] == [
        *["float32", "int32", "float32", "float32"],
        *["uint32", "uint32"],
    ]
    assert sampling.seed.tolist() == [[7, 5], [7, 5]]
    assert sampling.sample.tolist() == [4, 9]
