"""A pause, wrong dates of files and damaged compiled programs change no bit of a run."""

import contextlib
import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_run import Undisturbed

from benchmarks.interrupted_run import differences, finished, start
from benchmarks.interrupted_start import Interruption
from train.checkpoint_folder import committed_steps, step_folder
from train.run_folder import CHECKPOINTS

pytest_plugins = ["undisturbed_run"]

_DAY = 24 * 60 * 60
_MOST_SECONDS = 300


def _continue_child(stopped: list[int]) -> None:
    """Wait for a child that is stopped, and let it go on a second later."""
    for _ in range(_MOST_SECONDS):
        with contextlib.suppress(ChildProcessError):  # it is not there yet
            found = os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG)
            if found:
                stopped.append(found.si_pid)
                time.sleep(1)
                os.kill(found.si_pid, signal.SIGCONT)
                return
        time.sleep(1)


def test_wrong_dates_and_a_pause_in_a_save(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The newest checkpoint is that of the last step, not of the latest date."""
    config = dataclasses.replace(undisturbed.config, out=str(tmp_path / "run"))
    stop = Interruption("step", 6, signal=signal.SIGTERM)
    assert start(config, stop, threads=1, variables=undisturbed.variables).committed == 6
    folder = Path(config.out) / CHECKPOINTS
    first, *_, last = sorted(committed_steps(folder))
    now = time.time()
    for step, at in ((first, now + _DAY), (last, now - _DAY)):
        for path in [step_folder(folder, step), *step_folder(folder, step).rglob("*")]:
            os.utime(path, (at, at))
    stopped: list[int] = []
    helper = threading.Thread(target=_continue_child, args=(stopped,), daemon=True)
    helper.start()
    pause = Interruption("fsync", 8, signal=signal.SIGSTOP)
    link = finished(start(config, pause, threads=1, variables=undisturbed.variables))
    helper.join(timeout=10)
    assert len(stopped) == 1
    assert f"after step {last}" in link.said
    assert differences(undisturbed.config, config) == []


@pytest.fixture
def damaged_programs(undisturbed: Undisturbed) -> Iterator[list[str]]:
    """The names of the programs compiled for the run, all cut short or replaced until the end."""
    # In their place, because their names depend on it: in another folder none would be looked at.
    compiled = Path(undisturbed.variables["JAX_COMPILATION_CACHE_DIR"])
    sound = compiled.rename(compiled.with_name("sound"))
    try:
        compiled.mkdir()
        programs = sorted(path for path in sound.iterdir() if path.name.endswith("-cache"))
        for number, path in enumerate(programs):
            content = path.read_bytes()
            damaged = b"not a program" if number % 2 else content[: len(content) // 2]
            (compiled / path.name).write_bytes(damaged)
        yield [path.name for path in programs]
    finally:
        shutil.rmtree(compiled)
        sound.rename(compiled)


def test_a_damaged_compile_cache(
    undisturbed: Undisturbed, damaged_programs: list[str], tmp_path: Path
) -> None:
    """Each program is compiled anew, with a warning."""
    assert any("train_step" in name for name in damaged_programs)
    config = dataclasses.replace(undisturbed.config, out=str(tmp_path / "run"))
    link = finished(start(config, Interruption(), threads=1, variables=undisturbed.variables))
    assert "compilation cache entry for 'jit_train_step'" in link.said
    assert "Traceback" not in link.said
    assert differences(undisturbed.config, config) == []
