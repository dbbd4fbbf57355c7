"""One training step: loss and gradients of a batch, and the new state; jitted and donated.

A step whose loss, gradients or moments are not finite leaves weights and optimizer bitwise as they
were. So does one without a token that counts. Both move on to the next step, that is, to the next
batch.

Letters: B rows, T tokens predicted by a row, A parts of an accumulated batch.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxcoder.model import GPTBigCode

from .config import LoraConfig, OptimizerConfig
from .lora import init_adapters, merge
from .loss import chunked_cross_entropy
from .optimizer import learning_rate, make_optimizer, moments_are_finite

Array = jax.Array

# XLA's default order of operations on CPU starts all that could run at once, and holds what they
# give. In this order the step needs less memory and no more time. A TPU's compiler accepts the
# option and has no use for it. Both names were tried: the old one with 0.7.2 to 0.10.1, the new one
# from 0.10.0 to 0.12.0.1.
_MEMORY_ORDER = (
    {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ >= (0, 10, 0)
    else {"xla_cpu_enable_concurrency_optimized_scheduler": False}
)


class BatchLike(Protocol):
    """What a step reads of a batch, a NamedTuple (see data.py)."""

    tokens: Array
    """int32 [B, T + 1]; position t predicts tokens[:, t + 1]."""
    segment_ids: Array
    """int32 [B, T + 1]: documents do not see each other."""
    positions: Array
    """int32 [B, T + 1]."""
    loss_mask: Array
    """float32 [B, T]: weight of each prediction."""


@dataclass(frozen=True)
class StepConfig:
    """What a step is compiled for; hashable, a static argument."""

    model: GPTBigCode
    """Its dtype is that of the products; weights in training are float32."""
    optimizer: OptimizerConfig
    """AdamW and its schedule."""
    steps: int
    """Of the whole run, for the learning rate."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Rank above 0: adapters are trained, and the model's weights are frozen."""
    seed: int = 0
    """Of fresh adapters and of the dropout."""
    accumulation: int = 1
    """Parts that the batch is computed in; divides its rows."""
    loss_chunk: int = 512
    """Tokens whose logits are held at once."""


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Array
    """int32 []: steps taken, skipped ones among them; the next batch is that of this number."""
    params: dict
    """What is trained, float32: the model's weights, or adapters (see lora.py)."""
    frozen: dict
    """Beside adapters the model's weights, never changed; otherwise empty."""
    opt_state: optax.OptState
    """Adam's moments and the count of steps in them."""
    bad_steps: Array
    """int32 []: steps in a row, up to the last one, that were not finite, see `Metrics`."""


class Metrics(NamedTuple):
    """What a step reports."""

    loss: Array
    """float32 []: mean over the tokens that count, each by its weight in the mask, nats, the z-loss
    with it; 0 where none does."""
    tokens: Array
    """float32 []: sum of the loss mask."""
    grad_norm: Array
    """float32 []: norm of all gradients together, before clipping."""
    learning_rate: Array
    """float32 [], of this step."""
    is_finite: Array
    """bool []: loss, gradients and moments are; otherwise the step was skipped."""
    tensor_is_finite: Array
    """bool [tensors]: each gradient's sum of squares is, in the order of `tensor_names`."""
    moments_are_finite: Array
    """bool [tensors]: Adam's moments before the step were, in the same order."""
    bad_steps: Array
    """int32 []: as in the new state, whose arrays the next step deletes."""


def init_state(params: dict, *, config: StepConfig) -> TrainState:
    """The state before step 0. It takes the arrays of `params` over: `train_step` deletes them."""
    frozen: dict = {}
    if config.lora.rank > 0:
        key = jax.random.key(config.seed)
        params, frozen = init_adapters(params, key, config=config.lora), params
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    opt_state = make_optimizer(config.optimizer).init(params)
    return TrainState(jnp.int32(0), params, frozen, opt_state, jnp.int32(0))


def model_params(state: TrainState, *, config: StepConfig) -> dict:
    """The weights of the model, adapters merged: to evaluate, to export."""
    return _merged(state.params, state.frozen, config)


def tensor_names(params: dict) -> list[str]:
    """The paths of the leaves, such as h_0/attn/q/weight, in the order of their flags."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return ["/".join(key.key for key in path) for path, _ in paths]


def bad_tensors(names: Sequence[str], flags: Array) -> list[str]:
    """Those of `names` whose flag is false.

    Args:
      names: as `tensor_names` gives them.
      flags: bool [tensors], of `Metrics`.
    """
    return [name for name, ok in zip(names, jax.device_get(flags), strict=True) if not ok]


@functools.partial(
    jax.jit, static_argnames="config", donate_argnums=0, compiler_options=_MEMORY_ORDER
)
def train_step(
    state: TrainState, batch: BatchLike, *, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """Take one step; `state` is donated.

    Raises:
      ValueError: accumulation does not divide the rows.
    """
    loss, gradients = loss_and_gradients(state, batch, config=config)
    return apply_gradients(state, gradients, loss=loss, tokens=batch.loss_mask.sum(), config=config)


@functools.partial(jax.jit, static_argnames="config")
def eval_step(params: dict, batch: BatchLike, *, config: StepConfig) -> tuple[Array, Array]:
    """Sum of the negative log-likelihoods (nats) of the tokens that count, and their number, [].

    `params` are the model's (see `model_params`); there is neither dropout nor z-loss.
    """
    weights = batch.loss_mask
    return _weighted_loss(
        params, batch, weights, key=None, config=config, z_loss=0.0
    ), weights.sum()


def loss_and_gradients(
    state: TrainState, batch: BatchLike, *, config: StepConfig
) -> tuple[Array, dict]:
    """Mean loss [] over the tokens that count, and its gradients, in `config.accumulation` parts.

    Raises:
      ValueError: accumulation does not divide the rows.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    total = batch.loss_mask.sum()
    weights = batch.loss_mask / jnp.where(total == 0, 1, total)

    @jax.value_and_grad
    def of_part(trained: dict, part: BatchLike, part_weights: Array, part_key: Array) -> Array:
        params, z_loss = _merged(trained, state.frozen, config), config.optimizer.z_loss
        return _weighted_loss(
            params, part, part_weights, key=part_key, config=config, z_loss=z_loss
        )

    parts, rows = config.accumulation, len(batch.tokens)
    if parts == 1:
        return of_part(state.params, batch, weights, key)
    if rows % parts:
        raise ValueError(
            f"batch.accumulation is {parts} and the batch has {rows} rows; it must divide them"
        )

    def add_part(sums: tuple[Array, dict], part: tuple) -> tuple[tuple[Array, dict], None]:
        number, part_batch, part_weights = part
        part_key = jax.random.fold_in(key, number)
        return jax.tree.map(
            jnp.add, sums, of_part(state.params, part_batch, part_weights, part_key)
        ), None

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    split = jax.tree.map(
        lambda leaf: leaf.reshape(parts, rows // parts, *leaf.shape[1:]), (batch, weights)
    )
    sums, _ = lax.scan(add_part, zeros, (jnp.arange(parts), *split))
    return sums


def apply_gradients(
    state: TrainState, gradients: dict, *, loss: Array, tokens: Array, config: StepConfig
) -> tuple[TrainState, Metrics]:
    """The state after one AdamW step, or the same weights and optimizer if it is to be skipped.

    Args:
      state: before the step.
      gradients: of `state.params`, with their tree and shapes.
      loss: float32 [], the mean.
      tokens: float32 [], how many count; with 0 the step is skipped.
      config: of the step.
    """
    squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)])
    norm = jnp.sqrt(squares.sum())
    are_sound = moments_are_finite(state.opt_state)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm) & are_sound.all()
    rate = learning_rate(state.step, config.optimizer, steps=config.steps)
    is_taken = is_finite & (tokens > 0)
    updates, opt_state = make_optimizer(config.optimizer).update(
        gradients, state.opt_state, state.params, is_taken=is_taken
    )
    params = jax.tree.map(
        lambda leaf, update: jnp.where(is_taken, leaf - rate * update, leaf), state.params, updates
    )
    bad_steps = jnp.where(is_finite, 0, state.bad_steps + 1)
    metrics = Metrics(
        loss, tokens, norm, rate, is_finite, jnp.isfinite(squares), are_sound, bad_steps
    )
    new_state = TrainState(state.step + 1, params, state.frozen, opt_state, bad_steps)
    return new_state, metrics


def _merged(trained: dict, frozen: dict, config: StepConfig) -> dict:
    return merge(frozen, trained, config=config.lora) if config.lora.rank > 0 else trained


def _weighted_loss(
    params: dict,
    batch: BatchLike,
    weights: Array,
    *,
    key: Array | None,
    config: StepConfig,
    z_loss: float,
) -> Array:
    """Weighted sum of the losses of a batch; dropout acts where there is a key."""
    model = config.model
    features, _ = model.apply(
        {"params": params},
        batch.tokens[:, :-1],
        positions=batch.positions[:, :-1],
        segment_ids=batch.segment_ids[:, :-1],
        train=key is not None,
        rngs=None if key is None else {"dropout": key},
        method="features",
    )
    head = params["wte" if model.config.tie_word_embeddings else "lm_head"]["weight"]
    return chunked_cross_entropy(
        features.reshape(-1, features.shape[-1]),
        head,
        targets=batch.tokens[:, 1:].reshape(-1),
        weights=weights.reshape(-1),
        chunk=config.loss_chunk,
        dtype=model.dtype,
        z_loss=z_loss,
    )
