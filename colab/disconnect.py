"""A training run cut off on purpose, as by a runtime that is taken away."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from train.checkpoint_folder import committed_steps
from train.config import TrainConfig
from train.run_folder import CHECKPOINTS

_POLL_SECONDS = 0.05


@contextlib.contextmanager
def disconnect(config: TrainConfig) -> Iterator[None]:
    """Interrupt this process once the run of `config` has its first checkpoint.

    A run that has a checkpoint already is left alone, so that a notebook can be run again, and so
    is one whose first checkpoint is its last.
    """
    checkpoints = Path(config.out) / CHECKPOINTS
    if committed_steps(checkpoints):
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_POLL_SECONDS):
            if steps := committed_steps(checkpoints):
                if max(steps) < config.loop.steps:
                    os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
