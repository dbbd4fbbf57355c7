"""Starts of a training command that are interrupted, what they leave, and which runs are equal."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcoder.errors import CheckpointError
from train.checkpoint_folder import committed_steps, verify
from train.checkpoints import Checkpoints
from train.command import command_words
from train.config import TrainConfig
from train.leaves import named_leaves
from train.metrics import read_json_lines
from train.restore import restore
from train.run_folder import CHECKPOINTS, METRICS_FILE, SAMPLES_FILE
from train.start import prepare_start

from .interrupted_start import Interruption

PROJECT = Path(__file__).resolve().parent.parent
_OF_THE_CLOCK = ("tokens_per_second", "mfu")


class Link(NamedTuple):
    """One start of a run, how it ended and what it left."""

    interruption: Interruption
    status: int
    """Exit status; negative: the signal that ended it."""
    said: str
    """Standard error."""
    seconds: float
    """From the first signal to the end of the process; 0 without one."""
    committed: int
    """Step of the newest checkpoint; 0: none."""
    unreadable: str
    """Why the newest checkpoint cannot be read; empty: it can."""
    logged: int
    """Last step in the log."""


def start(
    config: TrainConfig,
    interruption: Interruption,
    *,
    threads: int,
    after: float | None = None,
    variables: dict[str, str] | None = None,
) -> Link:
    """Start the command of `config` in a process of its own and wait for its end.

    Args:
      config: of the run.
      interruption: at a place of the program.
      threads: of the processor, that XLA uses.
      after: seconds after which the signal is sent, wherever the process is.
      variables: of the environment, to add.
    """
    words = [json.dumps(dataclasses.asdict(interruption)), *command_words(config), "--no-export"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.interrupted_start", *words],
        cwd=PROJECT,
        env=os.environ | one_device(threads) | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    began = None
    try:
        told, said = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        began = time.time()
        process.send_signal(interruption.signal)
        told, said = process.communicate()
    if began is None:
        began = _interrupted_at(told)
    run = Path(config.out)
    committed = max(committed_steps(run / CHECKPOINTS), default=0)
    return Link(
        interruption=interruption,
        status=process.returncode,
        said=said,
        seconds=time.time() - began if began else 0.0,
        committed=committed,
        unreadable=_unreadable(run / CHECKPOINTS, committed),
        logged=max((line["step"] for line in _lines(run / METRICS_FILE)), default=0),
    )


def finished(link: Link) -> Link:
    """`link`, whose run came to its end.

    Raises:
      RuntimeError: it did not.
    """
    if link.status != 0:
        raise RuntimeError(f"the run ended with status {link.status}, expected 0:\n{link.said}")
    return link


def was_interrupted(link: Link) -> bool:
    """Whether the signal ended this start; one that came when the start was over did not."""
    number = link.interruption.signal
    if link.status == 0:
        # The run heard it, and says so; nothing hears SIGKILL.
        return f"{signal.Signals(number).name}: ended" in link.said
    return link.status == -number


def one_device(threads: int) -> dict[str, str]:
    """The environment in which XLA computes on the CPU with so many threads."""
    eigen = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}"
    return {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": str(threads), "XLA_FLAGS": eigen}


def differences(config: TrainConfig, other: TrainConfig) -> list[str]:
    """What is not the same, to the last bit, in two runs that ended: tensors and lines of logs."""
    found = []
    for (name, a), (_, b) in zip(_final(config), _final(other), strict=True):
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            found.append(name)
    for name in (METRICS_FILE, SAMPLES_FILE):
        a, b = (_lines(Path(each.out) / name) for each in (config, other))
        found += [f"{name}: {x} and {y}" for x, y in itertools.zip_longest(a, b) if x != y]
    return found


def counts(links: Sequence[Link]) -> dict[str, float]:
    """What was lost over the starts of one run, in their order."""
    pairs = list(itertools.pairwise(links))
    interrupted = [link for link in links if was_interrupted(link)]
    killed = [link for link in interrupted if link.interruption.signal == signal.SIGKILL]
    stopped = [link for link in interrupted if link.interruption.signal == signal.SIGTERM]
    # A stop that came before a step leaves what a kill had cost: that is not its own.
    idle = [b for a, b in pairs if (a.logged, a.committed) == (b.logged, b.committed)]
    return {
        "kills": len(killed),
        "stops": len(stopped),
        "unreadable latest": sum(bool(link.unreadable) for link in links),
        "lost committed steps": sum(max(0, a.committed - b.committed) for a, b in pairs),
        "goes on elsewhere than at the newest": sum(not _goes_on(a, b) for a, b in pairs),
        "most steps done again after a kill": max(
            (x.logged - x.committed for x in killed), default=0
        ),
        "most steps done again after a stop": max(
            (x.logged - x.committed for x in stopped if x not in idle), default=0
        ),
        "most seconds to stop": max((x.seconds for x in stopped), default=0.0),
    }


def _interrupted_at(told: str) -> float | None:
    """What the process said of the moment of its first signal."""
    for line in told.splitlines():
        if line.startswith('{"interrupted"'):
            return json.loads(line)["interrupted"]
    return None


def _goes_on(before: Link, after: Link) -> bool:
    """Whether a start took up the newest checkpoint; one that ended before that changed nothing."""
    if not before.committed or "going on after step" not in after.said:
        return before.committed in (0, after.committed)
    return f"going on after step {before.committed} of" in after.said


def _unreadable(folder: Path, newest: int) -> str:
    try:
        if newest:
            verify(folder, newest)
    except CheckpointError as exc:
        return str(exc)
    return ""


def _final(config: TrainConfig) -> list[tuple[str, np.ndarray]]:
    run = Path(config.out)
    state, _ = restore(Checkpoints(run / CHECKPOINTS), config, prepare_start(config, run))
    return [(name, np.asarray(leaf)) for name, leaf in named_leaves(state)]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    lines = read_json_lines(path) if path.exists() else []
    return [{key: line[key] for key in line if key not in _OF_THE_CLOCK} for line in lines]
