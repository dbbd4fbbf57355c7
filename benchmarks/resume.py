"""Runs that are killed and started again, against one that is left alone: is the result the same?

Kills come at random moments and inside each phase of a save. After each the same command goes on.
In the end weights, optimizer, data and every line of the log are compared to the last bit, for a
processor's one thread and for two.
"""

import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from jaxcoder.durable import replace_file
from jaxcoder.errors import CheckpointError
from jaxcoder.json_file import json_bytes
from train.checkpoint_folder import PHASES, committed_steps, verify
from train.checkpoints import Checkpoints
from train.command import command_words
from train.config import BatchConfig, ShapeConfig, TrainConfig
from train.leaves import named_leaves
from train.loop import restore
from train.metrics import read_json_lines
from train.presets import smoke
from train.run_folder import CHECKPOINTS, METRICS_FILE, SAMPLES_FILE, config_fields
from train.start import prepare_start

from .harness import environment
from .interrupted_start import Interruption

PROJECT = Path(__file__).resolve().parent.parent
_OF_THE_CLOCK = ("tokens_per_second", "mfu")


@dataclass(frozen=True)
class ResumeConfig:
    """What is measured."""

    kills: int = 30
    """Of each number of threads; one in two inside a save."""
    threads: tuple[int, ...] = (1, 2)
    """Of the processor, that XLA computes an operation with."""
    seed: int = 0
    """Of the moments."""
    out: str = "docs/resume.json"
    """JSON file to write."""


class Link(NamedTuple):
    """One start of a run, how it ended and what it left."""

    interruption: Interruption
    status: int
    """Exit status; negative: the signal that ended it."""
    said: str
    """Standard error."""
    seconds: float
    """From the first signal that the process sent itself to its end; 0 without one."""
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
    kill_after: float | None = None,
    variables: dict[str, str] | None = None,
) -> Link:
    """Start the command of `config` in a process of its own and wait for its end.

    Args:
      config: of the run.
      interruption: at a place of the program.
      threads: of the processor, that XLA uses.
      kill_after: seconds after which the process is killed, wherever it is.
      variables: of the environment, to add.
    """
    words = [json.dumps(dataclasses.asdict(interruption)), *command_words(config), "--no-export"]
    command = [sys.executable, "-m", "benchmarks.interrupted_start", *words]
    try:
        ended = subprocess.run(
            command,
            cwd=PROJECT,
            env=os.environ | one_device(threads) | (variables or {}),
            capture_output=True,
            # Where the time is over, it is a kill -9.
            timeout=kill_after,
        )
        status, said, told = ended.returncode, ended.stderr, ended.stdout
    except subprocess.TimeoutExpired as exc:
        status, said, told = -signal.SIGKILL, exc.stderr or b"", exc.stdout or b""
    now = time.time()
    first = told.decode().splitlines()[:1]
    began = json.loads(first[0])["interrupted"] if first and "interrupted" in first[0] else now
    run = Path(config.out)
    committed = max(committed_steps(run / CHECKPOINTS), default=0)
    return Link(
        interruption=interruption,
        status=status,
        said=said.decode(errors="replace"),
        seconds=now - began,
        committed=committed,
        unreadable=_unreadable(run / CHECKPOINTS, committed),
        logged=max((line["step"] for line in _lines(run / METRICS_FILE)), default=0),
    )


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


def counts(links: Sequence[Link]) -> dict[str, int]:
    """What was lost over the starts of one run, in their order."""
    pairs = list(itertools.pairwise(links))
    return {
        "kills": sum(link.status == -signal.SIGKILL for link in links),
        "unreadable latest": sum(bool(link.unreadable) for link in links),
        "lost committed steps": sum(max(0, a.committed - b.committed) for a, b in pairs),
        "goes on elsewhere than at the newest": sum(not _goes_on(a, b) for a, b in pairs),
        "most steps done again": max((a.logged - a.committed for a, _ in pairs), default=0),
    }


def _goes_on(before: Link, after: Link) -> bool:
    """Whether a start took up the newest checkpoint; one killed before that says nothing yet."""
    if not before.committed or "going on after step" not in after.said:
        return not before.committed or after.status == -signal.SIGKILL
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


def _measured_run(out: Path) -> TrainConfig:
    """Wide enough that two threads share its products, and steps of some tens of milliseconds."""
    config = smoke()
    loop = dataclasses.replace(
        config.loop,
        steps=60,
        log_every=1,
        eval_every=20,
        eval_infills=2,
        eval_samples=1,
        save_every=5,
    )
    return dataclasses.replace(
        config,
        out=str(out),
        shape=ShapeConfig(
            vocab_size=512, n_positions=128, n_embd=256, n_layer=2, n_head=4, dropout=0.1
        ),
        batch=BatchConfig(size=8, seq_len=128, accumulation=2),
        loop=loop,
    )


def measure(folder: Path, *, threads: int, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs so many times; counts of what was lost, and what differs in the end."""
    alone = _measured_run(folder / f"alone-{threads}")
    began = time.perf_counter()
    finished(start(alone, Interruption(), threads=threads))
    seconds = time.perf_counter() - began
    generator = random.Random(seed)
    phases = itertools.cycle([*PHASES, "metrics write"])
    results, unequal = [], []
    while kills > 0:
        config = dataclasses.replace(alone, out=str(folder / f"killed-{threads}-{len(results)}"))
        links: list[Link] = []
        while kills > 0 and not (links and links[-1].status == 0):
            done = links[-1].committed if links else 0
            if kills % 2:
                place, moment = Interruption(), generator.uniform(0.1, 0.9) * seconds
            else:
                place, moment = Interruption(next(phases), done + generator.randrange(15)), None
            links.append(start(config, place, threads=threads, kill_after=moment))
            kills -= links[-1].status == -signal.SIGKILL
            _say(f"{threads} threads, {kills} kills to go: {links[-1]}")
        if links[-1].status != 0:
            links.append(start(config, Interruption(), threads=threads))
        finished(links[-1])
        results.append(counts(links))
        unequal += differences(alone, config)
    return {"runs": len(results), **_together(results), "equal": not unequal, "unequal": unequal}


def finished(link: Link) -> Link:
    """`link`, whose run came to its end.

    Raises:
      RuntimeError: it did not.
    """
    if link.status != 0:
        raise RuntimeError(f"the run ended with status {link.status}, expected 0:\n{link.said}")
    return link


def main(config: ResumeConfig) -> int:
    """Measure, write the file; exit status 1 unless all is as it should be with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAXCODER_CACHE", folder)
        measured = {
            str(threads): measure(
                Path(folder), threads=threads, kills=config.kills, seed=config.seed
            )
            for threads in config.threads
        }
        settings = config_fields(_measured_run(Path("RUN")))
    report = {**environment(), "settings": settings, "by_threads": measured}
    replace_file(Path(config.out), json_bytes(report))
    print(json.dumps(measured, indent=1))
    return 0 if all(each["equal"] for number, each in measured.items() if number == "1") else 1


def _together(results: Sequence[dict[str, int]]) -> dict[str, int]:
    return {
        name: (max if name.startswith("most") else sum)(result[name] for result in results)
        for name in results[0]
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ResumeConfig, description=__doc__)))
