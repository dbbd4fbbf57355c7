"""The train step and decoding, lowered for a device that need not exist.

Weights and activations are bfloat16, as on a TPU by default, and trained weights float32. Only
shapes are handed around: no array is made, on no device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcoder.cache import init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.generate import PREFILL_PIECE, DecodeState, decode_chunk, prefill
from jaxcoder.model import GPTBigCode
from jaxcoder.sampling import sampling_params

from .config import OptimizerConfig
from .data import Batch
from .step import StepConfig, init_state, train_step

DTYPE = jnp.dtype(jnp.bfloat16)


def lower_train_step(
    config: ModelConfig,
    device: jax.Device,
    *,
    rows: int,
    seq_len: int,
    remat: bool,
    loss_chunk: int,
) -> jax.stages.Lowered:
    """`step.train_step` for batches of B rows that predict T = `seq_len` tokens each."""
    model = GPTBigCode(config, dtype=DTYPE, remat=remat)
    # No size depends on the length of the run, but the schedule is part of the program.
    step = StepConfig(model=model, optimizer=OptimizerConfig(), steps=1000, loss_chunk=loss_chunk)

    def arguments() -> tuple:
        ids = jnp.zeros((rows, seq_len + 1), jnp.int32)
        batch = Batch(ids, ids, ids, jnp.zeros((rows, seq_len), jnp.float32))
        return init_state(_params(model), config=step), batch

    return train_step.lower(*_abstract(arguments, device), config=step)


def lower_prefill(
    config: ModelConfig, device: jax.Device, *, rows: int, capacity: int
) -> jax.stages.Lowered:
    """`generate.prefill` of its longest piece of B prompts, into a cache of `capacity` slots."""
    model = _decoder(config)

    def arguments() -> tuple:
        tokens = jnp.zeros((rows, min(PREFILL_PIECE, capacity)), jnp.int32)
        counts = jnp.zeros(rows, jnp.int32)
        return _params(model), _decode_state(config, rows, capacity), tokens, counts

    return prefill.lower(model, *_abstract(arguments, device))


def lower_decode_chunk(
    config: ModelConfig, device: jax.Device, *, rows: int, capacity: int
) -> jax.stages.Lowered:
    """`generate.decode_chunk` of B rows, with a cache of `capacity` slots."""
    model = _decoder(config)

    def arguments() -> tuple:
        sampling = jax.tree.map(jnp.asarray, sampling_params(rows))
        eos_ids, stopped = jnp.zeros(1, jnp.int32), jnp.zeros(rows, bool)
        return _params(model), _decode_state(config, rows, capacity), sampling, eos_ids, stopped

    return decode_chunk.lower(model, *_abstract(arguments, device))


def _decoder(config: ModelConfig) -> GPTBigCode:
    return GPTBigCode(config, dtype=DTYPE, param_dtype=DTYPE)


def _params(model: GPTBigCode) -> dict:
    return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def _decode_state(config: ModelConfig, rows: int, capacity: int) -> DecodeState:
    return DecodeState(
        logits=jnp.zeros((rows, config.vocab_size), jnp.float32),
        seen=jnp.zeros((rows, config.vocab_size), bool),
        cache=init_cache(config, rows, capacity, DTYPE),
        remaining=jnp.zeros(rows, jnp.int32),
    )


def _abstract(arguments: Callable[[], tuple], device: jax.Device) -> tuple:
    """What `arguments` would return, as shapes on `device`."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(arguments),
    )
