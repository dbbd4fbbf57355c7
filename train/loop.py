"""`fit`: one training run from its config to its last checkpoint, started anew or gone on with.

The order of events of a run:
 1. the run directory is locked, its config written or compared;
 2. tokenizer, token store and batches are prepared;
 3. the newest valid checkpoint is restored, or the weights are made;
 4. steps: batch, step, report; validation and checkpoints at their intervals;
 5. the last checkpoint.
"""

import os
from pathlib import Path
from typing import NamedTuple

from jaxcoder.config import ModelConfig
from jaxcoder.devices import announce, default_device, resolve_dtype
from jaxcoder.diagnostics import say
from jaxcoder.errors import ConfigError
from jaxcoder.model import GPTBigCode

from .checkpoints import Checkpoints
from .config import TrainConfig
from .config_checks import check_config
from .data import BatchSource
from .evaluation import Validation
from .report import Report, Reporter
from .run_folder import CHECKPOINTS, record_config
from .run_lock import run_lock
from .signals import StopRequest, stop_on_signals
from .start import Start, initial_params, prepare_start
from .step import StepConfig, TrainState, init_state, model_params, tensor_names, train_step
from .store import open_store


class Outcome(NamedTuple):
    """How a call of `fit` ended."""

    step: int
    """Steps done."""
    is_finished: bool
    """Whether these are all; False after a signal."""


def fit(
    config: TrainConfig, *, allow_older_checkpoint: bool = False, resume: bool = True
) -> Outcome:
    """Train until the last step or a signal; the same call goes on with a run that exists.

    Args:
      config: the run; see config.py.
      allow_older_checkpoint: when the newest checkpoint is damaged, take the one before.
      resume: False refuses a run that exists.

    Raises:
      ConfigError: mistakes in `config`, or the run directory belongs to another run.
      CheckpointError: a damaged checkpoint, or a save that failed.
      TrainingStopped: too many steps in a row were not finite.
    """
    check_config(config)
    run = Path(config.out)
    with run_lock(run):
        if record_config(run, config) and not resume:
            raise ConfigError(f"{run}: holds a run, and resume is off; choose another --out")
        checkpoints = Checkpoints(run / CHECKPOINTS, keep=config.loop.keep)
        checkpoints.prepare()
        start = prepare_start(config, run)
        store = open_store(config, start.tokenizer, cache_folder())
        source = BatchSource(store, start.tokenizer, config)
        validation = Validation(store, start.config, start.tokenizer, config=config)
        settings = step_config(config, start.config)
        announce(default_device(), settings.model.dtype.name)
        state = restore(checkpoints, config, start, allow_older_checkpoint=allow_older_checkpoint)
        reporter = Reporter(
            run,
            config,
            start.config,
            validation,
            tensors=tensor_names(state.params),
            after_step=int(state.step),
        )
        with reporter, stop_on_signals() as stop:
            loop = _Loop(config, settings, source, checkpoints, reporter)
            step = loop.run(state, stop)
    if step < config.loop.steps:
        say(f"{stop.name}: saved step {step} of {config.loop.steps}; the same command goes on")
    return Outcome(step, step == config.loop.steps)


def cache_folder() -> Path:
    """Where token stores are kept: $JAXCODER_CACHE, else ~/.cache/jaxcoder."""
    root = os.environ.get("JAXCODER_CACHE") or Path.home() / ".cache" / "jaxcoder"
    return Path(root) / "tokens"


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
) -> TrainState:
    """The newest state, or that of step 0.

    Raises:
      CheckpointError: the newest checkpoint is damaged, or not of this run.
    """
    params = initial_params(start, seed=config.seed)
    state = init_state(params, config=step_config(config, start.config))
    step = checkpoints.newest_valid(allow_fallback=allow_older_checkpoint)
    if step is not None:
        state, _ = checkpoints.restore(step, state)
        say(f"{config.out}: going on after step {step} of {config.loop.steps}")
    return state


class _Loop:
    """The steps of one run."""

    def __init__(
        self,
        config: TrainConfig,
        settings: StepConfig,
        source: BatchSource,
        checkpoints: Checkpoints,
        reporter: Reporter,
    ) -> None:
        self._loop, self._settings, self._source = config.loop, settings, source
        self._checkpoints, self._reporter = checkpoints, reporter

    def run(self, state: TrainState, stop: StopRequest) -> int:
        """Take the steps that are missing; returns the number of steps done."""
        first = done = int(state.step)
        if done == 0:
            self._validate(state, 0)
        if done == self._loop.steps:
            return done
        pending: Report | None = None
        for number, batch, contents in self._source.iterate(first):
            state, metrics = train_step(state, batch, config=self._settings)
            # The device computes this step while the one before is reported.
            if pending:
                self._reporter.step(pending)
            done, pending = number + 1, Report(number + 1, contents, metrics, state.bad_steps)
            self._checkpoints.raise_if_failed()
            is_last = done == self._loop.steps or bool(stop)
            if is_last or done % self._loop.save_every == 0 or done % self._loop.eval_every == 0:
                self._reporter.step(pending)
                pending = None
            if done % self._loop.eval_every == 0 or done == self._loop.steps:
                self._validate(state, done)
            if is_last or done % self._loop.save_every == 0:
                self._checkpoints.save(done, state, {})
            if is_last:
                break
        self._checkpoints.wait()
        return done

    def _validate(self, state: TrainState, step: int) -> None:
        params = model_params(state, config=self._settings)
        self._reporter.validation(step, params, self._settings)
