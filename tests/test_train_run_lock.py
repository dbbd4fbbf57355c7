"""One process per run: the second is refused by name, a killed one leaves nothing to clear away."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from jaxcoder.errors import ConfigError
from train import run_lock as module
from train.run_lock import LOCK_FILE, run_lock

PROJECT = Path(__file__).resolve().parent.parent

HOLDER = """
import sys, time
from pathlib import Path
from train.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_start_is_refused_and_kill_frees(tmp_path: Path, capfd) -> None:
    """A refusal names the holder; after kill -9 the next start needs no clearing away."""
    run = tmp_path / "new" / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout.readline() == "held\n"
            with pytest.raises(ConfigError) as refused, run_lock(run):
                pass
            assert str(run) in str(refused.value)
            assert f"process {child.pid} on " in str(refused.value)
        finally:
            child.send_signal(signal.SIGKILL)
    capfd.readouterr()
    with run_lock(run) as killed:
        assert killed.startswith(f"process {child.pid} on ")
    assert f"process {child.pid} on " in capfd.readouterr().err


def test_clean_end_leaves_no_holder(tmp_path: Path, capfd) -> None:
    """Starting again after a clean end, or an error, says nothing about a killed run."""
    with run_lock(tmp_path) as killed:
        assert killed is None
        holder = json.loads((tmp_path / LOCK_FILE).read_text())
        assert holder["pid"] == os.getpid()
    with pytest.raises(KeyError), run_lock(tmp_path) as killed:
        assert killed is None
        raise KeyError
    with run_lock(tmp_path) as killed:
        assert killed is None
    assert not capfd.readouterr().err


@pytest.mark.parametrize("name", ["run", LOCK_FILE])
def test_a_failure_leaves_nothing_that_was_not_there(tmp_path: Path, name: str) -> None:
    """Folders made for the lock go with it, unless the run has begun; those that were there stay.

    Control: an interruption leaves them, since the same command goes on.
    """
    run = tmp_path / "new" / name
    with pytest.raises(KeyError), run_lock(run):
        raise KeyError
    assert not list(tmp_path.iterdir())
    run.mkdir(parents=True)
    with pytest.raises(KeyError), run_lock(run):
        raise KeyError
    assert not list(run.iterdir())
    with pytest.raises(KeyError), run_lock(run):
        (run / "config.json").touch()
        raise KeyError
    assert {path.name for path in run.iterdir()} == {"config.json", LOCK_FILE}
    with pytest.raises(KeyboardInterrupt), run_lock(tmp_path / "other"):
        raise KeyboardInterrupt
    assert (tmp_path / "other" / LOCK_FILE).exists()


def test_a_file_deleted_before_it_is_locked_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the process that made it failed: two would hold the run."""
    lock, calls = module._lock, []

    def late(file: IO[str], folder: Path) -> None:
        calls.append(file)
        if len(calls) == 1:
            (folder / LOCK_FILE).unlink()
        lock(file, folder)

    monkeypatch.setattr(module, "_lock", late)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        monkeypatch.undo()
        with pytest.raises(ConfigError, match="is being written by"), run_lock(tmp_path):
            pass
    assert len(calls) == 2 and calls[0].closed


def test_refused_start_keeps_the_holders_name(tmp_path: Path) -> None:
    """The loser of two starts must not empty the file of the winner."""
    with run_lock(tmp_path):
        content = (tmp_path / LOCK_FILE).read_text()
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"process {os.getpid()} on "), run_lock(tmp_path):
                pass
        assert (tmp_path / LOCK_FILE).read_text() == content


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff\x00", b"x" * 10_000])
def test_damaged_content_does_not_stop_a_start(tmp_path: Path, content: bytes, capfd) -> None:
    """A lock file cut short by a full disk: the lock itself is not in the content."""
    (tmp_path / LOCK_FILE).write_bytes(content)
    with run_lock(tmp_path) as killed:
        assert killed.startswith("an unknown process")
        assert len(killed) < 200
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    capfd.readouterr()


def test_file_in_the_place_of_the_run(tmp_path: Path) -> None:
    """--out that names a file is one clear error."""
    run = tmp_path / "run"
    run.write_text("x")
    with pytest.raises(ConfigError, match=r"run/lock: cannot be opened .*choose another"):
        run_lock(run).__enter__()
    assert run.read_text() == "x"


def test_file_system_without_locks_is_said(tmp_path: Path, monkeypatch, capfd) -> None:
    """The run goes on, but not silently unprotected."""

    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with run_lock(tmp_path):
        assert "has no locks (No locks available)" in capfd.readouterr().err
