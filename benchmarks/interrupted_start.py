"""One start of a training command that a signal meets at a chosen place; `resume` makes these.

Usage: python -m benchmarks.interrupted_start INTERRUPTION PRESET [SETTINGS ...]

INTERRUPTION is an `Interruption` as JSON, such as {"place": "fsync", "step": 4}.
"""

import contextlib
import functools
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from train import cli, loop
from train.checkpoints import Checkpoints
from train.data import Batch
from train.evaluation import Validation
from train.metrics import JsonLines
from train.step import StepConfig, TrainState


@dataclass(frozen=True)
class Interruption:
    """Where the process is interrupted, and how."""

    place: str = "nowhere"
    """A phase of a save, "step", "validation", "metrics write", "rename to NAME", or "compile".

    "compile" is that of the first step, and over before the signal if `delay` is too long.
    """
    step: int = 0
    """The first step at which it happens; a validation, a rename and "compile" have none."""
    delay: float = 0.0
    """Seconds from there to the signal, in which the process goes on."""
    signal: int = signal.SIGKILL
    """0 sends nothing: the moment is told and that is all."""
    times: int = 1
    """Signals sent, one after the other."""
    file_bytes: int = 0
    """Bytes of a file after which writing fails, as on a full disk; 0: it does not."""


class Interrupter:
    """Sends the signals when the place is reached for the first time."""

    def __init__(self, interruption: Interruption) -> None:
        """Nothing has been reached yet."""
        self._interruption, self._is_done = interruption, False
        # A daemon: a process that ends sooner does not wait for it.
        self._later = threading.Timer(interruption.delay, self._send)
        self._later.daemon = True

    def is_due(self, place: str, step: int = 0) -> bool:
        """Whether `reached` will lead to the signals."""
        wanted = self._interruption
        return not self._is_done and place.startswith(wanted.place) and step >= wanted.step

    def reached(self, place: str, step: int = 0) -> None:
        """Send the signals if this is the place; called at every place."""
        if not self.is_due(place, step):
            return
        self._is_done = True
        if self._interruption.delay:
            self._later.start()
        else:
            self._send()

    @contextlib.contextmanager
    def only_within(self, place: str) -> Iterator[None]:
        """The body is the place: signals that would come after it are not sent."""
        is_due = self.is_due(place)
        self.reached(place)
        yield
        if is_due:
            self._later.cancel()

    def _send(self) -> None:
        print(json.dumps({"interrupted": time.time()}), flush=True)
        for _ in range(self._interruption.times):
            os.kill(os.getpid(), self._interruption.signal)


def main(interruption: Interruption, words: list[str]) -> int:
    """Run the training command `words`; returns its exit status."""
    interrupter = Interrupter(interruption)
    if interruption.file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (interruption.file_bytes, resource.RLIM_INFINITY))
    measure, make_report, write = Validation.loss, loop.Report, JsonLines.write
    take_step = loop.train_step

    def first_compiled(state: TrainState, batch: Batch, *, config: StepConfig) -> Any:
        if interrupter.is_due("compile"):
            # Traced before, so that nearly all of the call is XLA's compilation.
            take_step.lower(state, batch, config=config)
        with interrupter.only_within("compile"):
            return take_step(state, batch, config=config)

    def report(step: int, *fields: Any) -> loop.Report:
        """The step is dispatched, and nothing is known of it."""
        interrupter.reached("step", step)
        return make_report(step, *fields)

    def loss(self: Validation, *arguments: Any) -> dict[str, float]:
        found = measure(self, *arguments)
        interrupter.reached("validation")
        return found

    def half_write(self: JsonLines, fields: Mapping[str, Any]) -> None:
        if "loss" in fields and interrupter.is_due("metrics write", fields["step"]):
            line = json.dumps(fields)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line[: len(line) // 2])
            interrupter.reached("metrics write", fields["step"])
        write(self, fields)

    def before(rename: Any) -> Any:
        def wrapped(self: Path, target: Path) -> Path:
            interrupter.reached(f"rename to {Path(target).name}")
            return rename(self, target)

        return wrapped

    with (
        mock.patch.object(loop, "train_step", first_compiled),
        mock.patch.object(loop, "Report", report),
        mock.patch.object(Validation, "loss", loss),
        mock.patch.object(JsonLines, "write", half_write),
        mock.patch.object(Path, "rename", before(Path.rename)),
        mock.patch.object(Path, "replace", before(Path.replace)),
        mock.patch.object(
            loop, "Checkpoints", functools.partial(Checkpoints, on_phase=interrupter.reached)
        ),
    ):
        return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(Interruption(**json.loads(sys.argv[1])), sys.argv[2:]))
