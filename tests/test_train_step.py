"""One step: what it leaves equal, what it skips, what it reports."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_cases import (
    LENGTH,
    ROWS,
    TOY,
    Batch,
    as_numpy,
    assert_bitwise_equal,
    flat,
    packed_batch,
    relative_error,
    toy_config,
    toy_params,
    toy_state,
)

from jaxcoder.model import GPTBigCode, init_params
from train import step as step_module
from train.config import OptimizerConfig
from train.step import (
    Metrics,
    StepConfig,
    TrainState,
    apply_gradients,
    bad_tensors,
    eval_step,
    init_state,
    loss_and_gradients,
    model_params,
    tensor_names,
    train_step,
)

# The same float32 sums in another order.
REORDERED = 1e-6

gradients_of = jax.jit(loss_and_gradients, static_argnames="config")
apply = jax.jit(apply_gradients, static_argnames="config")


def loss_and_gradients_with(batch: Batch, **changes: object) -> tuple[float, dict]:
    config = toy_config(**changes)
    loss, gradients = gradients_of(toy_state(config), batch, config=config)
    return float(loss), as_numpy(gradients)


def assert_same_up_to_order(a: tuple[float, dict], b: tuple[float, dict]) -> None:
    assert a[0] == pytest.approx(b[0], rel=REORDERED)
    assert relative_error(a[1], b[1]) <= REORDERED


SAME = {
    "accumulation 4 x 2": {"accumulation": 4},
    "accumulation 8 x 1": {"accumulation": 8},
    "remat": {"model": GPTBigCode(TOY, remat=True)},
    "remat and accumulation": {"model": GPTBigCode(TOY, remat=True), "accumulation": 2},
    "whole cross-entropy": {"loss_chunk": ROWS * LENGTH},
    "chunks of 7": {"loss_chunk": 7},
}


@pytest.mark.parametrize("way", SAME)
def test_ways_to_compute_a_step_agree(way: str) -> None:
    """Rows have unlike numbers of counted tokens: a mean of means would show."""
    batch = packed_batch()
    assert len(set(batch.loss_mask.sum(axis=1))) > 1
    assert_same_up_to_order(
        loss_and_gradients_with(batch, **SAME[way]), loss_and_gradients_with(batch)
    )


def test_dropout_is_the_same_where_blocks_are_computed_again() -> None:
    """Attention draws its mask again in any case, and with remat once more."""
    dropping = dataclasses.replace(TOY, attn_pdrop=0.3, resid_pdrop=0.3)
    batch = packed_batch()
    plain, again = (
        loss_and_gradients_with(batch, model=GPTBigCode(dropping, remat=remat))
        for remat in (False, True)
    )
    assert_same_up_to_order(again, plain)
    assert abs(plain[0] - loss_and_gradients_with(batch)[0]) > 10 * REORDERED * plain[0]


def test_a_mean_of_the_parts_means_is_another_loss() -> None:
    """Control of the test above."""
    batch = packed_batch()
    halves = [Batch(*(leaf[part] for leaf in batch)) for part in (slice(0, 4), slice(4, 8))]
    whole = loss_and_gradients_with(batch)
    mean = np.mean([loss_and_gradients_with(half)[0] for half in halves])
    assert abs(mean - whole[0]) > 10 * REORDERED * whole[0]


def test_accumulation_must_divide_the_rows() -> None:
    with pytest.raises(ValueError, match=r"batch\.accumulation is 3 .* 8 rows"):
        loss_and_gradients_with(packed_batch(), accumulation=3)


def test_blocks_are_computed_again_only_with_remat() -> None:
    """The flag does something: the program holds the blocks' products a second time."""
    counts = []
    for remat in (False, True):
        config = toy_config(model=GPTBigCode(TOY, remat=remat))
        program = str(
            jax.make_jaxpr(
                lambda state, batch, config=config: loss_and_gradients(state, batch, config=config)
            )(toy_state(config), packed_batch())
        )
        counts.append(program.count("dot_general["))
    assert counts[1] >= counts[0] + 6 * TOY.n_layer - 2


def test_only_counted_targets_matter() -> None:
    """Padding and the first token of the next document are no target; a counted one is."""
    batch = packed_batch()
    row, position = np.argwhere(batch.loss_mask == 0)[0]
    before = loss_and_gradients_with(batch)[0]
    padded = batch.tokens.copy()
    padded[batch.segment_ids == 0] = 7
    assert loss_and_gradients_with(batch._replace(tokens=padded))[0] == before
    config = toy_config()
    params = toy_params()
    loss, tokens = eval_step(params, batch, config=config)
    assert float(tokens) == batch.loss_mask.sum()
    counted = batch.loss_mask.copy()
    counted[row, position] = 1
    more, _ = eval_step(params, batch._replace(loss_mask=counted), config=config)
    assert float(more) > float(loss)


def test_loss_is_the_mean_of_the_evaluation() -> None:
    config, batch = toy_config(), packed_batch()
    nll, tokens = eval_step(toy_params(), batch, config=config)
    _, metrics = train_step(toy_state(config), batch, config=config)
    assert float(metrics.loss) == pytest.approx(float(nll / tokens), rel=REORDERED)
    assert float(metrics.tokens) == float(tokens)
    assert bool(metrics.is_finite)


def test_evaluation_leaves_z_loss_and_dropout_out() -> None:
    batch = packed_batch()
    plain, _ = eval_step(toy_params(), batch, config=toy_config())
    dropping = GPTBigCode(dataclasses.replace(TOY, resid_pdrop=0.5, embd_pdrop=0.5))
    optimizer = OptimizerConfig(z_loss=1.0)
    config = toy_config(model=dropping, optimizer=optimizer)
    assert float(eval_step(toy_params(), batch, config=config)[0]) == float(plain)
    assert loss_and_gradients_with(batch, optimizer=optimizer)[0] > float(plain) / 100


def test_steps_bring_the_loss_down() -> None:
    config, batch = toy_config(), packed_batch()
    state, losses = toy_state(config), []
    for _ in range(30):
        state, metrics = train_step(state, batch, config=config)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] - 0.3
    assert int(state.step) == 30


def test_dropout_is_drawn_anew_each_step_and_the_same_again() -> None:
    """The key is folded from (seed, step): equal for the same step, else different."""
    dropping = GPTBigCode(dataclasses.replace(TOY, resid_pdrop=0.3))
    batch = packed_batch()

    def loss_of(*, seed: int, step: int) -> float:
        config = toy_config(model=dropping, seed=seed)
        state = toy_state(config)._replace(step=jnp.int32(step))
        return float(gradients_of(state, batch, config=config)[0])

    first = loss_of(seed=0, step=3)
    assert loss_of(seed=0, step=3) == first
    assert len({first, loss_of(seed=0, step=4), loss_of(seed=1, step=3)}) == 3


def test_parts_of_a_batch_drop_different_elements() -> None:
    """With one key for all parts, equal parts would lose equal elements and have equal losses."""
    dropping = GPTBigCode(dataclasses.replace(TOY, resid_pdrop=0.3))
    half = packed_batch(rows=4)
    twice = Batch(*(np.concatenate([leaf, leaf]) for leaf in half))
    one = toy_config(model=dropping)
    two = toy_config(model=dropping, accumulation=2)
    of_half, of_twice = (
        float(gradients_of(toy_state(config), batch, config=config)[0])
        for config, batch in ((one, half), (two, twice))
    )
    assert abs(of_half - of_twice) > 1e-3


def poisoned(gradients: dict, name: str, value: float) -> dict:
    """`gradients` with one element of the tensor `name` set."""
    paths = tensor_names(gradients)
    leaves, tree = jax.tree.flatten(gradients)
    at = paths.index(name)
    leaves[at] = leaves[at].at[(0,) * leaves[at].ndim].set(value)
    return jax.tree.unflatten(tree, leaves)


def trained_state(config: StepConfig) -> TrainState:
    """A state after two steps, so that moments and counts are not those of the beginning."""
    state = toy_state(config)
    for seed in (1, 2):
        state, _ = train_step(state, packed_batch(seed=seed), config=config)
    return state


def assert_skipped(before: TrainState, after: TrainState) -> None:
    """Weights and optimizer are bitwise as they were; the step goes on."""
    assert_bitwise_equal(after.params, before.params)
    assert_bitwise_equal(after.opt_state, before.opt_state)
    assert_bitwise_equal(after.frozen, before.frozen)
    assert int(after.step) == int(before.step) + 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["h_1/attn/kv/bias", "wte/weight"])
def test_a_bad_gradient_is_skipped_and_named(name: str, value: float) -> None:
    config, batch = toy_config(), packed_batch()
    state = trained_state(config)
    before = as_numpy(state)
    loss, gradients = gradients_of(state, batch, config=config)
    bad = poisoned(gradients, name, value)
    after, metrics = apply(state, bad, loss=loss, tokens=jnp.float32(9), config=config)
    assert_skipped(before, after)
    assert not metrics.is_finite
    assert bad_tensors(tensor_names(after.params), metrics.tensor_is_finite) == [name]
    assert int(after.bad_steps) == 1
    good, metrics = apply(after, gradients, loss=loss, tokens=jnp.float32(9), config=config)
    assert metrics.is_finite
    assert bad_tensors(tensor_names(good.params), metrics.tensor_is_finite) == []
    assert int(good.bad_steps) == 0
    assert not np.array_equal(good.params["wte"]["weight"], before.params["wte"]["weight"])


def test_a_bad_gradient_inside_the_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the jitted, donated step; K bad ones in a row are counted."""
    clean = step_module.loss_and_gradients

    def one_bad(state: TrainState, batch: Batch, *, config: StepConfig) -> tuple:
        loss, gradients = clean(state, batch, config=config)
        return loss, poisoned(gradients, "h_0/mlp/c_fc/weight", np.nan)

    monkeypatch.setattr(step_module, "loss_and_gradients", one_bad)
    config = toy_config(seed=77)  # no other test compiles this one
    state = toy_state(config)
    before = as_numpy(state)
    for count in (1, 2, 3):
        state, metrics = train_step(state, packed_batch(), config=config)
        assert bad_tensors(tensor_names(state.params), metrics.tensor_is_finite) == [
            "h_0/mlp/c_fc/weight"
        ]
        assert int(state.bad_steps) == count
    assert_bitwise_equal(state.params, before.params)
    assert_bitwise_equal(state.opt_state, before.opt_state)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
@pytest.mark.parametrize("moment", ["mu", "nu"])
@pytest.mark.parametrize("name", ["h_1/attn/kv/bias", "wte/weight"])
def test_a_bad_moment_is_skipped_and_named(name: str, moment: str, value: float) -> None:
    """A NaN in one moment went into the weights, since loss and gradients were finite beside it.

    Infinity in the second moment made updates of zero, so that the weight was never trained again;
    below zero it has no root. Control: a first moment of -1 is one like any other.
    """
    config, batch = toy_config(), packed_batch()
    state = trained_state(config)
    good = state.opt_state
    moments = getattr(good[1], moment)
    bad = good[1]._replace(**{moment: poisoned(moments, name, value)})
    before = as_numpy(state._replace(opt_state=(good[0], bad, *good[2:])))
    after, metrics = train_step(jax.tree.map(jnp.array, before), batch, config=config)
    if (moment, value) == ("mu", -1.0):
        assert metrics.is_finite
        assert not np.array_equal(after.params["wte"]["weight"], before.params["wte"]["weight"])
        return
    assert_skipped(before, after)
    assert not metrics.is_finite
    assert np.isfinite(metrics.loss)
    assert bad_tensors(tensor_names(after.params), metrics.tensor_is_finite) == []
    assert bad_tensors(tensor_names(after.params), metrics.moments_are_finite) == [name]
    assert int(after.bad_steps) == 1


def test_a_bad_loss_alone_is_skipped() -> None:
    """Also where every gradient is finite."""
    config, batch = toy_config(), packed_batch()
    state = trained_state(config)
    before = as_numpy(state)
    _, gradients = gradients_of(state, batch, config=config)
    nan = jnp.float32(np.nan)
    after, metrics = apply(state, gradients, loss=nan, tokens=jnp.float32(9), config=config)
    assert_skipped(before, after)
    assert not metrics.is_finite
    assert bad_tensors(tensor_names(after.params), metrics.tensor_is_finite) == []
    assert int(after.bad_steps) == 1


def test_bad_data_are_skipped() -> None:
    """A loss mask that is not a number."""
    config, batch = toy_config(), packed_batch()
    state = trained_state(config)
    before = as_numpy(state)
    batch.loss_mask[2, 3] = np.nan
    after, metrics = train_step(state, batch, config=config)
    assert_skipped(before, after)
    assert not metrics.is_finite
    assert int(after.bad_steps) == 1


def test_a_bad_weight_is_never_stepped_from() -> None:
    """A NaN in the weights makes every gradient bad; the other weights stay as they were."""
    config = toy_config()
    state = trained_state(config)
    state.params["wpe"]["weight"] = state.params["wpe"]["weight"].at[0, 0].set(np.nan)
    before = as_numpy(state)
    after, metrics = train_step(state, packed_batch(), config=config)
    assert_skipped(before, after)
    assert "h_0/attn/q/weight" in bad_tensors(tensor_names(after.params), metrics.tensor_is_finite)


def test_a_batch_without_counted_tokens_changes_nothing() -> None:
    """Neither moments nor decay act; it is not a bad step."""
    config, batch = toy_config(), packed_batch()
    state = trained_state(config)
    before = as_numpy(state)
    after, metrics = train_step(
        state, batch._replace(loss_mask=np.zeros_like(batch.loss_mask)), config=config
    )
    assert_skipped(before, after)
    assert float(metrics.loss) == 0
    assert float(metrics.tokens) == 0
    assert float(metrics.grad_norm) == 0
    assert bool(metrics.is_finite)
    assert int(after.bad_steps) == 0


def test_a_good_step_is_not_skipped() -> None:
    """Control: every tensor, and every moment, changes."""
    config = toy_config()
    state = trained_state(config)
    before = as_numpy(state)
    after, _ = train_step(state, packed_batch(), config=config)
    for name, leaf in flat(after.params).items():
        assert not np.array_equal(leaf, flat(before.params)[name]), name
    for new, old in zip(
        jax.tree.leaves(after.opt_state), jax.tree.leaves(before.opt_state), strict=True
    ):
        assert not np.array_equal(new, old)


def test_reported_norm_and_rate() -> None:
    config, batch = toy_config(), packed_batch()
    _, gradients = gradients_of(toy_state(config), batch, config=config)
    squares = sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradients))
    _, metrics = train_step(toy_state(config), batch, config=config)
    assert float(metrics.grad_norm) == pytest.approx(squares**0.5, rel=REORDERED)
    assert float(metrics.learning_rate) == pytest.approx(1e-3 / 5, rel=REORDERED)


def test_the_state_is_donated() -> None:
    """Weights and moments are updated in place: the old ones are gone."""
    config = toy_config()
    state = toy_state(config)
    leaf = state.params["wte"]["weight"]
    train_step(state, packed_batch(), config=config)
    assert leaf.is_deleted()


def test_training_in_bfloat16_keeps_float32_weights() -> None:
    config, batch = toy_config(model=GPTBigCode(TOY, dtype=jnp.bfloat16)), packed_batch()
    right = loss_and_gradients_with(batch)
    got = loss_and_gradients_with(batch, model=config.model)
    assert got[0] == pytest.approx(right[0], rel=0.01)
    assert REORDERED < relative_error(got[1], right[1]) < 0.03
    state, _ = train_step(toy_state(config), batch, config=config)
    floats = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32]
    assert set(floats) == {jnp.dtype(jnp.float32)}


def test_without_adapters_the_model_has_the_trained_weights() -> None:
    config = toy_config()
    state = toy_state(config)
    assert model_params(state, config=config) is state.params
    assert state.frozen == {}


def test_metrics_are_scalars_and_one_flag_a_tensor() -> None:
    config = toy_config()
    state, metrics = train_step(toy_state(config), packed_batch(), config=config)
    shapes = {name: getattr(metrics, name).shape for name in Metrics._fields}
    for name in ("tensor_is_finite", "moments_are_finite"):
        assert shapes.pop(name) == (len(tensor_names(state.params)),)
    assert set(shapes.values()) == {()}


def temporary_bytes(step: Callable, **shape: float) -> int:
    """What `step` needs beside its state and a batch of 1 x 1,024 tokens, at 4 layers or others."""
    shape = dataclasses.replace(TOY, **{"n_layer": 4, "n_positions": 1024} | shape)
    config = toy_config(model=GPTBigCode(shape))
    params = jax.eval_shape(functools.partial(init_params, config.model), jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, config=config), params)
    compiled = step.lower(state, packed_batch(rows=1, length=1024), config=config).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_order_of_operations_saves_memory() -> None:
    """The compiler's option is one it knows, and does what it is for."""
    plain = jax.jit(train_step.__wrapped__, static_argnames="config", donate_argnums=0)
    assert temporary_bytes(train_step) < 0.9 * temporary_bytes(plain)


def test_scores_of_all_queries_are_never_held() -> None:
    """Temporaries of a step are fewer than one array [N, T, T] of each layer would be."""
    assert temporary_bytes(train_step) < 4 * TOY.n_head * 1024 * 1024 * 4


def test_masks_of_dropout_are_never_held_for_all_layers() -> None:
    """Two layers more cost nearly what they cost without dropout: the masks are drawn again.

    Held, they would be 5/8 of a byte for each of N * T * T weights: a byte, and half of the blocks.
    """
    more = [
        temporary_bytes(train_step, attn_pdrop=rate)
        - temporary_bytes(train_step, attn_pdrop=rate, n_layer=2)
        for rate in (0.0, 0.1)
    ]
    assert more[1] < more[0] + 2 * TOY.n_head * 1024 * 1024 / 2
