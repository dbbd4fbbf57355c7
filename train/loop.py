"""`fit`: one training run from its config to its last checkpoint, started anew or gone on with.

The order of events of a run:
 1. settings and model are checked, the run directory is locked, its config written or compared;
 2. tokenizer, token store and batches are prepared;
 3. the newest valid checkpoint is restored, or the weights are made;
 4. steps: batch, step, report; validation and checkpoints at their intervals;
 5. the last checkpoint.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcoder.devices import announce, default_device
from jaxcoder.diagnostics import say
from jaxcoder.errors import ConfigError

from .checkpoint_folder import committed_steps
from .checkpoints import Checkpoints
from .config import TrainConfig
from .data import Batch, BatchSource, Contents
from .evaluation import Validation
from .report import Report, Reporter
from .restore import restore, step_config
from .run_folder import CHECKPOINTS, record_config
from .run_lock import run_lock
from .run_record import (
    record_data,
    record_start,
    recorded_data,
    remove_partial_files,
    undone_on_failure,
)
from .signals import Stopped, StopRequest, stop_on_signals
from .start import Origin, Start, prepare_start
from .start_checks import check_start
from .step import StepConfig, TrainState, model_params, tensor_names, train_step
from .store import open_store


class Outcome(NamedTuple):
    """How a call of `fit` ended."""

    step: int
    """Steps done and saved."""
    is_finished: bool
    """Whether the run is done; False after a signal."""


class Data(NamedTuple):
    """What a run shows to its model, and the beginning of the model itself."""

    start: Start
    """The model's config, weights and tokenizer."""
    source: BatchSource
    """The batches, by step."""
    validation: Validation
    """What is measured between steps."""


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
      TrainingStopped: too many steps in a row were not finite.

    An error that ends a first start before its first step leaves nothing that it has made.
    """
    run = Path(config.out)
    with stop_on_signals() as stop:
        try:
            with stop.immediate():
                origin = check_start(config)
        except Stopped:
            return _ended_before_a_step(run, stop)
        with run_lock(run):
            return _fit(
                run,
                config,
                origin,
                stop,
                allow_older_checkpoint=allow_older_checkpoint,
                resume=resume,
            )


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
    try:
        with undone_on_failure(run):
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
    except Stopped:
        return _ended_before_a_step(run, stop)
    reporter = Reporter(
        run,
        config,
        data.start.config,
        data.validation,
        tensors=tensor_names(state.params),
        describe=data.source.describe,
        after_step=int(state.step),
        overflows=extra.get("fim_overflows", 0),
    )
    with reporter:
        loop = _Loop(config, settings, data.source, checkpoints, reporter)
        try:
            step = loop.run(state, stop)
        finally:
            # Whatever ended the steps: the lock is ours until nothing is written any more.
            checkpoints.wait()
    if stop:
        say(
            f"{stop.name}: ended after step {step} of {config.loop.steps}; the same command goes on"
        )
    return Outcome(step, step == config.loop.steps and not stop)


def _ended_before_a_step(run: Path, stop: StopRequest) -> Outcome:
    say(f"{stop.name}: ended before the next step; the same command goes on")
    return Outcome(max(committed_steps(run / CHECKPOINTS), default=0), False)


def prepare_data(run: Path, config: TrainConfig, origin: Origin) -> Data:
    """Tokenizer, tokens and batches of a run; what it began with is written, or compared.

    Args:
      run: the run's folder.
      config: its settings.
      origin: what `check_start` found of the model.

    Raises:
      ConfigError: the model or the data is not usable, or not what the run began with.
    """
    start = prepare_start(config, run, origin)
    human_eval = config.source.human_eval
    store = open_store(
        config,
        start.tokenizer,
        cache_folder(),
        human_eval=None if human_eval is None else Path(human_eval),
        expected=recorded_data(run),
    )
    record_data(run, store.report)
    say(_counts(store.report))
    if not store.report["validation_documents"]:
        say(
            f"data: warning: of {_count(store.report['documents'], 'document')} none is held out "
            f"(share {config.source.validation_share}), so there is no validation; for one, start "
            "a run with a greater --source.validation-share, such as 0.2, and more documents if "
            "these are few"
        )
    source = BatchSource(store, start.tokenizer, config)
    validation = Validation(store, start.config, start.tokenizer, config=config)
    return Data(start, source, validation)


def _counts(report: Mapping[str, Any]) -> str:
    """What the data hold and what was left out, in one line; data.json in the run has it all."""
    left_out = ", ".join(f"{bad['count']} {reason}" for reason, bad in report["bad"].items())
    overlap = report["humaneval_overlap"]
    return (
        f"data: {_count(report['documents'], 'document')} "
        f"({report['validation_documents']} held out), "
        f"{report['tokens']} tokens; left out: {left_out or 'none'}; "
        f"near duplicates: {report['near_duplicates']}; with text of HumanEval: "
        f"{'not looked for (--source.human-eval FILE)' if overlap is None else overlap}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _open_checkpoints(run: Path, config: TrainConfig, *, resume: bool) -> Checkpoints:
    record = record_config(run, config)
    if not (resume or record.is_new):
        raise ConfigError(f"{run}: holds a run, and resume is off; choose another --out")
    remove_partial_files(run)
    checkpoints = Checkpoints(run / CHECKPOINTS, keep=config.loop.keep, run=record.identity)
    checkpoints.prepare()
    return checkpoints


def cache_folder() -> Path:
    """Where token stores are kept: $JAXCODER_CACHE, else ~/.cache/jaxcoder."""
    root = os.environ.get("JAXCODER_CACHE") or Path.home() / ".cache" / "jaxcoder"
    return Path(root) / "tokens"


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
        pending: Report | None = None
        for number, batch, contents in batches:
            state, metrics = train_step(state, batch, config=self._settings)
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
