"""Runs that are killed and started again, against one that is left alone: is the result the same?

Kills come at random moments and inside each phase of a save, SIGTERM at random moments. After each
the same command goes on. In the end weights, optimizer, data and every line of the log are compared
to the last bit, for a processor's one thread and for two.
"""

import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxcoder.durable import replace_file
from jaxcoder.json_file import json_bytes
from train.checkpoint_folder import PHASES
from train.config import BatchConfig, ShapeConfig, TrainConfig
from train.presets import smoke
from train.run_folder import config_fields

from .harness import environment
from .interrupted_run import Link, counts, differences, finished, start, was_interrupted
from .interrupted_start import Interruption

_MOST_SHOWN = 5


@dataclass(frozen=True)
class ResumeConfig:
    """What is measured."""

    kills: int = 30
    """For each number of threads; every other one inside a write."""
    stops: int = 10
    """SIGTERMs for each number of threads, at random moments."""
    threads: tuple[int, ...] = (1, 2)
    """Of the processor, that XLA computes an operation with."""
    seed: int = 0
    """Of the moments."""
    keep_compiled: bool = False
    """Let all starts use what the first has compiled: quicker, and one thing less done anew."""
    out: str = "docs/resume.json"
    """JSON file to write."""


def main(config: ResumeConfig) -> int:
    """Measure, write the file; exit status 1 where runs with one thread differ."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAXCODER_CACHE", folder)
        if config.keep_compiled:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        measured = {
            str(threads): measure(
                Path(folder),
                threads=threads,
                kills=config.kills,
                stops=config.stops,
                seed=config.seed,
            )
            for threads in config.threads
        }
    settings = config_fields(measured_run(Path("RUN")))
    report = {**environment(), "settings": settings, "by_threads": measured}
    replace_file(Path(config.out), json_bytes(report))
    print(json.dumps(measured, indent=1))
    return 0 if measured.get("1", {"equal": True})["equal"] else 1


def measured_run(out: Path) -> TrainConfig:
    """Wide enough that two threads share its products, and steps of some tens of milliseconds."""
    config = smoke()
    shape = ShapeConfig(
        vocab_size=512, n_positions=128, n_embd=256, n_layer=2, n_head=4, dropout=0.1
    )
    loop = dataclasses.replace(
        config.loop,
        steps=60,
        log_every=1,
        eval_every=20,
        eval_infills=2,
        eval_samples=1,
        save_every=5,
    )
    batch = BatchConfig(size=8, seq_len=128, accumulation=2)
    return dataclasses.replace(config, out=str(out), shape=shape, batch=batch, loop=loop)


def measure(folder: Path, *, threads: int, kills: int, stops: int, seed: int) -> dict[str, Any]:
    """Interrupt runs so many times; counts of what was lost, and what differs in the end."""
    alone = measured_run(folder / f"alone-{threads}")
    # The first start may compile for all others: it says nothing of how long they take.
    finished(start(measured_run(folder / f"first-{threads}"), Interruption(), threads=threads))
    began = time.perf_counter()
    finished(start(alone, Interruption(), threads=threads))
    seconds = time.perf_counter() - began
    todo = list(_interruptions(kills=kills, stops=stops, seconds=seconds, seed=seed))
    results: list[dict[str, float]] = []
    unequal: list[str] = []
    while todo or not results:
        config = dataclasses.replace(
            alone, out=str(folder / f"interrupted-{threads}-{len(results)}")
        )
        links: list[Link] = []
        _interrupt(config, todo, links, threads=threads)
        results.append(counts(links))
        unequal += differences(alone, config)
    return {
        "runs": len(results),
        **_together(results),
        "equal": not unequal,
        "differences": len(unequal),
        "first differences": unequal[:_MOST_SHOWN],
    }


def _interrupt(
    config: TrainConfig,
    todo: list[tuple[Interruption, float | None]],
    links: list[Link],
    *,
    threads: int,
) -> None:
    """Start a run until it comes to its end; what came after the end stays to do, and earlier."""
    while todo:
        place, after = todo.pop()
        newest = links[-1].committed if links else 0
        at = dataclasses.replace(place, step=newest + place.step)
        link = start(config, at, threads=threads, after=after)
        links.append(link)
        _say(
            f"{threads} threads: {at.place}, after {after} s, signal {at.signal}: status "
            f"{link.status}, step {link.logged} logged, {link.committed} saved"
        )
        if not was_interrupted(link):
            todo.append((place, 0.8 * after if after else None))
        if link.status == 0 and link.committed == config.loop.steps:
            return
        if link.status not in (0, -at.signal):
            finished(link)
    links.append(finished(start(config, Interruption(), threads=threads)))


def _interruptions(
    *, kills: int, stops: int, seconds: float, seed: int
) -> Iterator[tuple[Interruption, float | None]]:
    """Places, with their steps after the newest checkpoint, or moments; in a random order."""
    generator = random.Random(seed)
    phases = itertools.cycle([*PHASES, "metrics write"])
    kinds = ["kill"] * (kills // 2) + ["phase"] * (kills - kills // 2) + ["stop"] * stops
    generator.shuffle(kinds)
    for kind in kinds:
        if kind == "phase":
            yield Interruption(next(phases), generator.randrange(15)), None
        else:
            number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
            yield Interruption(signal=number), generator.uniform(0.1, 0.9) * seconds


def _together(results: Sequence[dict[str, float]]) -> dict[str, float]:
    return {
        name: (max if name.startswith("most") else sum)(result[name] for result in results)
        for name in results[0]
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ResumeConfig, description=__doc__)))
