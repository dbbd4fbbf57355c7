"""The train step and decoding, lowered for a TPU that need not be there.

Weights and activations are bfloat16, as on a TPU by default, and trained weights float32. Only
shapes are handed around: no array is made, on no device.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcoder.cache import init_cache
from jaxcoder.config import ModelConfig
from jaxcoder.errors import ConfigError
from jaxcoder.generate import PREFILL_PIECE, DecodeState, decode_chunk, prefill
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.sampling import sampling_params

from .config import OptimizerConfig
from .data import Batch
from .step import StepConfig, init_state, train_step

DTYPE = jnp.dtype(jnp.bfloat16)

# The second lets a machine compile two plans at once: compiling takes no TPU. Without the others
# libtpu looks for the TPU it should drive, says loudly that there is none, and leaves log files.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
}


def described_device(topology: str) -> jax.Device:
    """The first device of a slice such as v5e:2x2, for which programs compile and none can run.

    Sets what libtpu reads of the environment, where it is not set.

    Raises:
      ConfigError: there is no such slice, or libtpu cannot be started.
    """
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as exc:
        reason = str(exc).splitlines()[0]
        if not reason.startswith("INVALID_ARGUMENT"):
            raise ConfigError(f"plan: libtpu cannot be started here: {reason}") from exc
        raise ConfigError(
            f"plan: topology is {topology!r}, expected a slice of TPUs such as v5e:2x2 or v6e:2x2 "
            f"({reason}); name another"
        ) from exc
    return described.devices[0]


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
        ids = np.zeros((rows, seq_len + 1), np.int32)
        batch = Batch(ids, ids, ids, np.zeros((rows, seq_len), np.float32))
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
    return init_params(model, jax.random.key(0))


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
