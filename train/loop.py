"""`fit`: one training run from its config to its last checkpoint, started anew or gone on with.

The order of events of a run:
 1. settings and model are checked, the run directory is locked, its config written or compared;
 2. tokenizer, token store and batches are prepared;
 3. the newest valid checkpoint is restored, or the weights are made;
 4. steps: batch, step, report; validation and checkpoints at their intervals;
 5. the last checkpoint.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcoder.devices import announce, default_device
from jaxcoder.diagnostics import say
from jaxcoder.errors import ConfigError

from .checkpoint_folder import committed_steps
from .checkpoints import Checkpoints
from .config import TrainConfig
from .data import Batch, Contents
from .memory import out_of_memory_told
from .report import Report, Reporter
from .restore import restore, step_config
from .run_data import Data, prepare_data
from .run_folder import CHECKPOINTS, record_config
from .run_lock import run_lock
from .run_record import record_start, remove_partial_files, undone_on_failure
from .signals import Stopped, StopRequest, stop_on_signals
from .start import Origin
from .start_checks import check_start
from .step import StepConfig, TrainState, model_params, tensor_names, train_step


class Outcome(NamedTuple):
    """How a call of `fit` ended."""

    step: int
    """Steps done and saved."""
    is_finished: bool
    """Whether the run is done; False after a signal."""


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
      CheckpointError: a model that cannot be used, a damaged checkpoint, or a save that failed.
      TokenizerError: of the model, or made for another one.
      TrainingStopped: too many steps in a row were not finite, or the memory did not suffice.

    An error that ends a first start before its first step is done leaves nothing that it has made.
    """
    run = Path(config.out)
    with stop_on_signals() as stop:
        try:
            with stop.immediate():
                origin = check_start(config)
        except Stopped:
            return _ended_before_a_step(run, stop)
        with run_lock(run), out_of_memory_told(run, config):
            return _fit(
                run,
                config,
                origin,
                stop,
                allow_older_checkpoint=allow_older_checkpoint,
                resume=resume,
            )


class _Begun(NamedTuple):
    """A run that is ready for its next step."""

    checkpoints: Checkpoints
    data: Data
    settings: StepConfig
    state: TrainState
    extra: dict[str, Any]
    """The fields that were saved with the state."""


def _fit(
    run: Path,
    config: TrainConfig,
    origin: Origin,
    stop: StopRequest,
    *,
    allow_older_checkpoint: bool,
    resume: bool,
) -> Outcome:
    """`fit` with the run's folder locked."""
    with undone_on_failure(run) as keep:
        try:
            begun = _begin(
                run,
                config,
                origin,
                stop,
                allow_older_checkpoint=allow_older_checkpoint,
                resume=resume,
            )
        except Stopped:
            return _ended_before_a_step(run, stop)
        if int(begun.state.step):
            keep()  # a run that goes on has nothing that may be undone
        step = _take_steps(run, config, begun, stop, on_first_step=keep)
    if stop:
        say(
            f"{stop.name}: ended after step {step} of {config.loop.steps}; the same command goes on"
        )
    return Outcome(step, step == config.loop.steps and not stop)


def _begin(
    run: Path,
    config: TrainConfig,
    origin: Origin,
    stop: StopRequest,
    *,
    allow_older_checkpoint: bool,
    resume: bool,
) -> _Begun:
    """All that comes before the steps; raises `Stopped` at a signal."""
    checkpoints = _open_checkpoints(run, config, resume=resume)
    with stop.immediate():
        data = prepare_data(run, config, origin)
    settings = step_config(config, data.start.config)
    record_start(run, data.start.config, dtype=settings.model.dtype.name)
    announce(default_device(), settings.model.dtype.name)
    stop.check()
    state, extra = restore(
        checkpoints, config, data.start, allow_older_checkpoint=allow_older_checkpoint
    )
    return _Begun(checkpoints, data, settings, state, extra)


def _take_steps(
    run: Path,
    config: TrainConfig,
    begun: _Begun,
    stop: StopRequest,
    *,
    on_first_step: Callable[[], None],
) -> int:
    """The steps that are missing, reported and saved; returns how many are done and saved."""
    reporter = Reporter(
        run,
        config,
        begun.data.start.config,
        begun.data.validation,
        tensors=tensor_names(begun.state.params),
        describe=begun.data.source.describe,
        after_step=int(begun.state.step),
        totals=begun.extra,
    )
    with reporter:
        loop = _Loop(config, begun, reporter, on_first_step)
        try:
            return loop.run(begun.state, stop)
        finally:
            # Whatever ended the steps: the lock is ours until nothing is written any more.
            begun.checkpoints.wait()


def _ended_before_a_step(run: Path, stop: StopRequest) -> Outcome:
    say(f"{stop.name}: ended before the next step; the same command goes on")
    return Outcome(max(committed_steps(run / CHECKPOINTS), default=0), False)


def _open_checkpoints(run: Path, config: TrainConfig, *, resume: bool) -> Checkpoints:
    record = record_config(run, config)
    if not (resume or record.is_new):
        raise ConfigError(f"{run}: holds a run, and resume is off; choose another --out")
    remove_partial_files(run)
    checkpoints = Checkpoints(run / CHECKPOINTS, keep=config.loop.keep, run=record.identity)
    checkpoints.prepare()
    return checkpoints


class _Loop:
    """The steps of one run."""

    def __init__(
        self,
        config: TrainConfig,
        begun: _Begun,
        reporter: Reporter,
        on_first_step: Callable[[], None],
    ) -> None:
        self._loop, self._settings, self._source = config.loop, begun.settings, begun.data.source
        self._checkpoints, self._reporter = begun.checkpoints, reporter
        self._on_first_step = on_first_step

    def run(self, state: TrainState, stop: StopRequest) -> int:
        """Take the steps that are missing; returns the number of steps done and saved."""
        loop = self._loop
        done = int(state.step)
        is_due = done == loop.steps or done % loop.eval_every == 0
        if is_due and self._reporter.lacks_validation(done):
            self._validate(state, done, stop)
        if done == loop.steps or stop:
            return done
        # Its threads end here, whatever ends the steps.
        with contextlib.closing(self._source.iterate(done)) as batches:
            done = self._take(batches, state, stop)
        self._checkpoints.wait()
        return done

    def _take(
        self, batches: Iterable[tuple[int, Batch, Contents]], state: TrainState, stop: StopRequest
    ) -> int:
        """A step for each of `batches` until the last one, or the one amid a signal."""
        loop = self._loop
        first, pending = int(state.step), None
        for number, batch, contents in batches:
            state, metrics = train_step(state, batch, config=self._settings)
            if number == first:
                # What a device has no memory for shows where its result is waited for.
                jax.block_until_ready(metrics)
                self._on_first_step()
            # The device computes this step while the one before is reported.
            if pending:
                self._reporter.step(pending)
            done = number + 1
            pending = Report(done, batch, contents, metrics)
            self._checkpoints.raise_if_failed()
            is_last = done == loop.steps or bool(stop)
            if is_last or done % loop.save_every == 0 or done % loop.eval_every == 0:
                self._reporter.step(pending)
                pending = None
            if done == loop.steps or done % loop.eval_every == 0:
                self._validate(state, done, stop)
                is_last = is_last or bool(stop)
            if is_last or done % loop.save_every == 0:
                self._checkpoints.save(done, state, self._reporter.totals())
            if is_last:
                break
        return done

    def _validate(self, state: TrainState, step: int, stop: StopRequest) -> None:
        """Validate, unless a signal says that there is no time: then the next start does it."""
        with contextlib.suppress(Stopped):
            params = model_params(state, config=self._settings)
            findings = self._reporter.validate(params, self._settings, check=stop.check)
            self._reporter.validation(step, findings)
