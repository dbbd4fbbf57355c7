"""A first start that fails leaves the run directory as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    DATA_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    START_FILE,
    TENSORBOARD,
    TOKENIZER_FILE,
)
from train.run_record import remove_partial_files, undone_on_failure

NAMES = (CONFIG_FILE, START_FILE, DATA_FILE, TOKENIZER_FILE, METRICS_FILE, SAMPLES_FILE)


def test_what_a_failed_start_wrote_goes_and_the_config_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it left a tokenizer without a config: other settings took it over."""
    gone = []
    unlink = Path.unlink

    def note(path: Path, missing_ok: bool = False) -> None:
        gone.append(path.name)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", note)
    with pytest.raises(ValueError, match="mistake"), undone_on_failure(tmp_path):
        for name in NAMES:
            (tmp_path / name).touch()
        (tmp_path / CHECKPOINTS).mkdir()
        (tmp_path / TENSORBOARD).mkdir()
        (tmp_path / TENSORBOARD / "events").touch()
        raise ValueError("a mistake")
    assert sorted(gone) == sorted(NAMES)
    assert gone[-1] == CONFIG_FILE
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    """A run that exists keeps its records when a later start of it fails."""
    (tmp_path / CONFIG_FILE).touch()
    (tmp_path / TOKENIZER_FILE).touch()
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(ValueError, match="mistake"), undone_on_failure(tmp_path):
        (tmp_path / DATA_FILE).touch()
        raise ValueError("a mistake")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        CHECKPOINTS,
        CONFIG_FILE,
        TOKENIZER_FILE,
    ]


def test_all_of_a_run_that_is_there_stays(tmp_path: Path) -> None:
    """Records, checkpoints and curves, each with what it holds."""
    folders = (CHECKPOINTS, TENSORBOARD)
    paths = [tmp_path / name for name in NAMES] + [tmp_path / name / "file" for name in folders]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    with pytest.raises(ValueError, match="mistake"), undone_on_failure(tmp_path):
        raise ValueError("a mistake")
    assert [path.read_text() for path in paths] == [path.name for path in paths]


def test_what_is_kept_is_not_undone(tmp_path: Path) -> None:
    """From the first step on there is something to go on with."""
    with pytest.raises(ValueError, match="mistake"), undone_on_failure(tmp_path) as keep:
        (tmp_path / CONFIG_FILE).touch()
        keep()
        raise ValueError("a mistake")
    assert (tmp_path / CONFIG_FILE).exists()


def test_a_signal_undoes_nothing(tmp_path: Path) -> None:
    """The same command goes on with what is written."""
    with pytest.raises(KeyboardInterrupt), undone_on_failure(tmp_path):
        (tmp_path / CONFIG_FILE).touch()
        raise KeyboardInterrupt
    assert (tmp_path / CONFIG_FILE).exists()


def test_what_killed_exports_left_goes(tmp_path: Path) -> None:
    """They filled the disk with a model each. An export that is under way is let be."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (
        f".export-4.partial-{ended.pid}-0a1b2c3d",
        f".export-6.partial-{os.getppid()}-0a1b2c3d",
        "export-2",
        ".notes.partial-1-0a1b2c3d",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f".export-6.partial-{os.getppid()}-0a1b2c3d",
        "export-2",
        ".notes.partial-1-0a1b2c3d",
    }
