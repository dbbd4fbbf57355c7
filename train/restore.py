"""The state that a run goes on with: the newest checkpoint's, else that of step 0."""

import functools
from typing import Any

import jax

from jaxcoder.config import ModelConfig
from jaxcoder.devices import default_device, resolve_dtype
from jaxcoder.diagnostics import say
from jaxcoder.errors import CheckpointError
from jaxcoder.model import GPTBigCode, init_params

from .checkpoints import Checkpoints
from .config import TrainConfig
from .start import Start, initial_params
from .step import StepConfig, TrainState, init_state


def step_config(config: TrainConfig, model: ModelConfig) -> StepConfig:
    """What the step of a run is compiled for."""
    dtype = resolve_dtype(config.compute.dtype, default_device())
    return StepConfig(
        model=GPTBigCode(model, dtype=dtype, remat=config.compute.remat == "block"),
        optimizer=config.optimizer,
        steps=config.loop.steps,
        lora=config.lora,
        seed=config.seed,
        accumulation=config.batch.accumulation,
        loss_chunk=config.compute.loss_chunk,
    )


def restore(
    checkpoints: Checkpoints,
    config: TrainConfig,
    start: Start,
    *,
    allow_older_checkpoint: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
    """The newest state and the extra fields saved with it, or the state of step 0 and none.

    Raises:
      CheckpointError: the newest checkpoint is damaged, or not of this run.
    """
    step = checkpoints.newest_valid(allow_fallback=allow_older_checkpoint)
    if step is None:
        params = initial_params(start, seed=config.seed)
        return init_state(params, config=step_config(config, start.config)), {}
    if step > config.loop.steps:
        raise CheckpointError(
            f"{config.out}: has a checkpoint of step {step}, expected at most loop.steps "
            f"{config.loop.steps}; move it back where it belongs"
        )
    state, extra = restore_step(checkpoints, step, config, start)
    is_finished = step == config.loop.steps
    way = "finished, at" if is_finished else "going on after"
    say(f"{config.out}: {way} step {step} of {config.loop.steps}")
    return state, extra


def restore_step(
    checkpoints: Checkpoints, step: int, config: TrainConfig, start: Start
) -> tuple[TrainState, dict[str, Any]]:
    """The state of a step and the extra fields saved with it; the model's weights are not read.

    Raises:
      CheckpointError: the checkpoint is damaged, absent, or not of this run.
    """
    settings = step_config(config, start.config)
    params = jax.eval_shape(functools.partial(init_params, settings.model), jax.random.key(0))
    # Shapes alone: beside a state of arrays the one restored would not fit where one does.
    like = jax.eval_shape(functools.partial(init_state, config=settings), params)
    return checkpoints.restore(step, like)
