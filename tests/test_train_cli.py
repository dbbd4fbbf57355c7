"""The training command: what it prints where, its exit status, and mistakes in what is typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_run import command_words, run_config

from train import cli
from train.presets import PRESETS

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token stores of a test go with it."""
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path / "cache"))


def run_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "train", *words],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def status_of(*words: str) -> int:
    """The exit status of the command, run in this process; tyro ends it by itself."""
    try:
        return cli.main(words)
    except SystemExit as exc:
        return int(exc.code or 0)


def test_help_lists_presets_and_commands() -> None:
    """As a user starts it; no library of training is loaded for it."""
    result = run_command("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for name in (*PRESETS, "export RUN", "plot RUN"):
        assert name in result.stdout
    code = (
        "import sys; from train import cli; cli.main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('optax', 'orbax', 'grain', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)


def test_no_command_shows_the_usage_and_fails(capsys: pytest.CaptureFixture) -> None:
    assert status_of() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "python -m train PRESET" in said.err


@pytest.mark.parametrize("preset", PRESETS)
def test_help_of_a_preset_has_every_setting(preset: str, capsys: pytest.CaptureFixture) -> None:
    """With the preset's own defaults, and its docstring."""
    assert status_of(preset, "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--optimizer.peak-lr", "--fim.rate", "--out", "--no-resume", "--source.globs"):
        assert option.removeprefix("--no-") in shown
    assert (PRESETS[preset].__doc__ or "").splitlines()[0] in shown
    assert f"(default: {PRESETS[preset]().optimizer.peak_lr})" in shown


def test_an_unknown_preset_is_named_with_those_there_are(capsys: pytest.CaptureFixture) -> None:
    assert status_of("smok", "--out", "x") == 2
    said = capsys.readouterr().err
    assert "'smok' is no preset or command" in said
    assert all(name in said for name in PRESETS)
    assert "Traceback" not in said


def test_all_mistakes_of_a_command_are_listed_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Mistyped names among them; nothing is written."""
    run = tmp_path / "run"
    words = (
        *("--out", str(run), "--optimizer.peak-lr", "-1e-4", "--optimizer.warmup-steps", "2000"),
        *("--batch.size", "7", "--batch.accumulation", "2", "--fim.rate", "1.5"),
        *("--batch.seq-len", "8193", "--optimzer.peak-lr", "3e-4", "--batch.sise=4", "loose"),
    )
    assert status_of("smoke", *words) == 2
    said = capsys.readouterr()
    expected = [
        "--optimzer.peak-lr: no such setting, expected --optimizer.peak-lr",
        "--batch.sise=4: no such setting, expected --batch.size",
        "'loose': a word without an option",
        "optimizer.peak_lr: -0.0001",
        "optimizer.warmup_steps: 2000",
        "batch.accumulation: 2",
        "fim.rate: 1.5",
        "batch.seq_len: 8193",
    ]
    assert [line for line in expected if line not in said.err] == []
    assert f"{len(expected)} problems" in said.err
    assert "3e-4" not in said.err
    assert said.out == ""
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("smoke", "--out", "x", "--fim.rate", "half"), "--fim.rate"),
        (("smoke", "--out", "x", "--fim.level", "file"), "--fim.level"),
        (("export",), "RUN"),
        (("plot",), "RUN"),
    ],
)
def test_a_word_that_cannot_be_read_is_named(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture
) -> None:
    assert status_of(*words) == 2
    said = capsys.readouterr()
    assert expected in said.out + said.err
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("command", ["export", "plot"])
def test_a_folder_that_is_no_run_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Absent, empty, or a file: nothing appears."""
    file = tmp_path / "file"
    file.write_text("no run")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "absent", tmp_path / "empty", file):
        assert status_of(command, str(folder)) == 2
        said = capsys.readouterr()
        assert str(folder) in said.err
        assert "expected the" in said.err
        assert "Traceback" not in said.err
        assert said.out == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


def test_a_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Standard output has the exported folder alone, so that a script can use it."""
    config = run_config(tmp_path, steps=3, eval_every=3, save_every=3)
    folder = tmp_path / "run" / "export-3"
    assert status_of(*command_words(config)) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder}\n"
    assert "step 3: validation_loss" in said.err
    assert {"config.json", "model.safetensors", "README.md"} <= {p.name for p in folder.iterdir()}
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["config"]["optimizer"]["peak_lr"] == config.optimizer.peak_lr
    assert recorded["versions"]["jax"]

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert status_of(*command_words(config)) == 0, "the same command again"
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert status_of(*command_words(config), "--no-resume") == 2
    assert "resume is off" in capsys.readouterr().err
    assert status_of("export", str(tmp_path / "run"), "--step", "2") == 2
    assert "step" in capsys.readouterr().err
