"""kill -9 costs a run nothing but time: in the end it is, bit for bit, the run that was left alone.

Every start is a process of its own, with one thread of the processor, killed inside a phase of a
save, inside a write, in a step, while that compiles, or at a random moment. `benchmarks/resume.py`
kills 30 times, and with two threads too: docs/resume.json.
"""

import dataclasses
import json
import random
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from training_run import Undisturbed

from benchmarks.interrupted_run import Link, counts, differences, finished, start
from benchmarks.interrupted_start import Interruption
from benchmarks.resume import measure
from train.checkpoint_folder import PHASES, step_folder
from train.checkpoints import Checkpoints
from train.config import TrainConfig
from train.metrics import read_json_lines
from train.restore import restore
from train.run_folder import CHECKPOINTS, METRICS_FILE
from train.start import prepare_start

pytest_plugins = ["undisturbed_run"]

KILLS = {
    "before the config is there": Interruption("rename to config.json"),
    "before the tokenizer is there": Interruption("rename to tokenizer.json"),
    "before the tokens are there": Interruption("rename to tokens-"),
    "while the first step compiles": Interruption("compile", delay=0.5),
    "in the first step": Interruption("step", 1),
    "temp write": Interruption("temp write", 2),
    "fsync": Interruption("fsync", 4),
    "rename": Interruption("rename", 4),
    "metrics write": Interruption("metrics write", 5),
    "directory fsync": Interruption("directory fsync", 6),
    "deletion": Interruption("deletion", 4),
    "before the old metrics are there": Interruption("rename to metrics.jsonl"),
}
MOMENTS = 3
SEED = random.randrange(1 << 32)
"""Of the random moments: another in each run of the tests, and told where one fails."""


class Killed(NamedTuple):
    """A run that was killed again and again until it ended."""

    config: TrainConfig
    links: dict[str, Link]


@pytest.fixture(scope="module")
def at_places(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """The kills one after the other, then a start that is left alone."""
    folder = tmp_path_factory.mktemp("places")
    config = dataclasses.replace(undisturbed.config, out=str(folder / "run"))
    # The tokens are made anew too: a kill is to come before they are there.
    variables = undisturbed.variables | {"JAXCODER_CACHE": str(folder / "cache")}
    compiled, cold = undisturbed.variables["JAX_COMPILATION_CACHE_DIR"], folder / "cold"
    shutil.copytree(compiled, cold, ignore=shutil.ignore_patterns("jit_train_step-*"))
    links = {}
    for name, place in {**KILLS, "end": Interruption()}.items():
        changed = {"JAX_COMPILATION_CACHE_DIR": str(cold)} if place.place == "compile" else {}
        links[name] = start(config, place, threads=1, variables=variables | changed)
    return Killed(config, links)


@pytest.fixture(scope="module")
def at_moments(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Kills at random moments between 0.1 and 0.9 of the steps, in order, then no more."""
    folder = tmp_path_factory.mktemp("moments")
    config = dataclasses.replace(undisturbed.config, out=str(folder / "run"))
    alone = dataclasses.replace(config, out=str(folder / "alone"))
    # Signal 0 does nothing but tell the moment of the first step.
    told = Interruption("step", signal=0)
    whole = finished(start(alone, told, threads=1, variables=undisturbed.variables))
    steps = config.loop.steps
    print(f"the moments of the kills are drawn from seed {SEED}")
    generator = random.Random(SEED)
    links = {}
    for moment in sorted(generator.uniform(0.1, 0.9) * steps for _ in range(MOMENTS)):
        # From a step on and not from the first: on a machine whose speed changes the run is
        # not over before.
        place = Interruption("step", int(moment), delay=moment % 1 * whole.seconds / steps)
        links[f"after {moment} steps"] = start(
            config, place, threads=1, variables=undisturbed.variables
        )
    links["end"] = start(config, Interruption(), threads=1, variables=undisturbed.variables)
    return Killed(config, links)


@pytest.fixture(scope="module", params=["at_places", "at_moments"])
def killed(request: pytest.FixtureRequest) -> Killed:
    """Each of the runs above."""
    return request.getfixturevalue(request.param)


def test_all_kills_happened(killed: Killed) -> None:
    """A kill that did not happen proves nothing."""
    *kills, end = killed.links.values()
    assert len(kills) in (len(KILLS), MOMENTS)
    for link in kills:
        assert link.status == -signal.SIGKILL, (link.interruption, link.said)
    assert end.status == 0, end.said


def test_kills_came_where_they_were_to(at_places: Killed) -> None:
    """Every phase of a save is there; a step that still compiles has left nothing."""
    assert {*PHASES} <= {*KILLS}
    compiling = at_places.links["while the first step compiles"]
    assert "step 0: validation_loss" in compiling.said
    assert (compiling.logged, compiling.committed) == (0, 0)
    assert at_places.links["directory fsync"].committed == 6


def test_nothing_committed_is_lost(killed: Killed) -> None:
    """The newest checkpoint can be read after each kill, and is where the next start goes on."""
    links = list(killed.links.values())
    found = counts(links)
    assert found["unreadable latest"] == 0, [link.unreadable for link in links]
    assert found["lost committed steps"] == 0
    assert found["goes on elsewhere than at the newest"] == 0, [link.said for link in links]
    assert found["most steps done again after a kill"] <= 2 * killed.config.loop.save_every


def test_result_is_that_of_the_run_left_alone(killed: Killed, undisturbed: Undisturbed) -> None:
    """Weights, moments, batches, losses, validations: all equal to the last bit."""
    assert differences(undisturbed.config, killed.config) == []


def test_log_has_every_line_once(killed: Killed) -> None:
    """What a killed start has logged is neither kept twice nor cut off in the middle."""
    lines = read_json_lines(Path(killed.config.out) / METRICS_FILE)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, killed.config.loop.steps + 1))
    validated = [line["step"] for line in lines if "validation_loss" in line]
    assert validated == [0, 4, 8, 10]
    raw = (Path(killed.config.out) / METRICS_FILE).read_text().splitlines()
    assert len(raw) == len(lines)


def test_nothing_is_left_over(killed: Killed) -> None:
    """No file of a write that was interrupted stays in the run."""
    run = Path(killed.config.out)
    assert not [path.name for path in run.rglob(".*")]


def test_differences_are_seen(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The comparison can fail: it sees one bit of one tensor, one batch, and a line too many."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed.config.out, run)
    config = dataclasses.replace(undisturbed.config, out=str(run))
    assert differences(undisturbed.config, config) == []
    metrics = run / METRICS_FILE
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:-1], lines[-1], lines[-1]]))
    assert len(differences(undisturbed.config, config)) == 1
    fields = json.loads(lines[1])
    metrics.write_text("".join([lines[0], json.dumps(fields | {"batch": "0"}) + "\n", *lines[2:]]))
    assert len(differences(undisturbed.config, config)) == 1
    metrics.write_text("".join(lines))
    _flip_one_bit(config)
    assert differences(undisturbed.config, config) == ["params/h_1/mlp/c_fc/bias"]


def _flip_one_bit(config: TrainConfig) -> None:
    """In the state of the last step, which is saved again."""
    run, last = Path(config.out), config.loop.steps
    checkpoints = Checkpoints(run / CHECKPOINTS)
    state, extra = restore(checkpoints, config, prepare_start(config, run))
    bias = np.array(state.params["h_1"]["mlp"]["c_fc"]["bias"])
    bias.view(np.uint32)[3] ^= 1
    state.params["h_1"]["mlp"]["c_fc"]["bias"] = bias
    shutil.rmtree(step_folder(run / CHECKPOINTS, last))
    checkpoints.save(last, state, extra)
    checkpoints.wait()


@pytest.mark.nightly
@pytest.mark.parametrize("threads", [1, 2])
def test_thirty_kills(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 kills; with two threads the results need not be equal, all else holds."""
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path / "cache"))
    print(f"the moments of the kills are drawn from seed {SEED}")
    found = measure(tmp_path, threads=threads, kills=30, stops=10, seed=SEED)
    assert (found["kills"], found["stops"]) == (30, 10), found
    assert found["most steps done again after a stop"] == 0, found
    for name in ("unreadable latest", "lost committed steps"):
        assert found[name] == 0, found
    assert found["goes on elsewhere than at the newest"] == 0, found
    assert found["equal"] or threads > 1, found
