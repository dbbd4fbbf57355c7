"""Memory that does not suffice: one error with what needs less, and a folder free to use again."""

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from training_run import command_words, run_config
from watched_steps import watched

from train import cli, export, loop, report
from train.checkpoint_folder import committed_steps
from train.config import TrainConfig
from train.memory import is_out_of_memory
from train.run_folder import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SAMPLES_FILE

STEPS = 6


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path_factory.getbasetemp() / "memory_cache"))


def exhausted(*_: Any, **__: Any) -> Any:
    """The device's own error."""
    return jax.block_until_ready(jnp.zeros(1 << 46))


def exhausted_inside(*_: Any, **__: Any) -> Any:
    """As jax 0.7.2 says it of a CPU, and a device with the table of what it holds."""
    raise jax.errors.JaxRuntimeError(
        "INTERNAL: Error preparing computation: Out of memory allocating 99 bytes.\nTable"
    )


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


ERRORS = {
    "device": (exhausted, r"RESOURCE_EXHAUSTED: Out of memory allocating \d+ bytes\."),
    "inside a program": (exhausted_inside, r"INTERNAL: .* allocating 99 bytes\."),
    "host": (no_memory, "MemoryError"),
}


def small(tmp_path: Path, **loop_settings: Any) -> TrainConfig:
    return run_config(tmp_path, **{"steps": STEPS, "eval_every": STEPS} | loop_settings)


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_is_one_error_and_the_run_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It came out of the command as a traceback, without a word on what to do."""
    config = small(tmp_path)
    error, reason = ERRORS[kind]
    watched(monkeypatch, spoiled={4: error})
    assert cli.main(command_words(config)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("train: ")]
    assert said.err.endswith(f"{line}\n"), "and nothing after it"
    assert re.match(rf"train: \S+/run: out of memory \({reason}\)", line)
    for remedy in (
        "batch.accumulation (now 2)",
        "compute.remat block (now none)",
        "compute.loss_chunk (now 64)",
        "batch.seq_len (now 64)",
    ):
        assert remedy in line
    assert "Step 4 is saved and nothing saved is lost: the same command goes on" in line
    assert "other settings need another --out" in line

    watched(monkeypatch)
    assert cli.main(command_words(config)) == 0
    assert "going on after step 4 of 6" in capsys.readouterr().err
    assert committed_steps(tmp_path / "run" / CHECKPOINTS)[-1] == STEPS


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_in_an_export_is_one_error_too(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """There no setting of the step helps."""
    error, reason = ERRORS[kind]
    monkeypatch.setattr(export, "export_run", error)
    assert cli.main(["export", str(tmp_path)]) == 1
    expected = rf"train: out of memory \({reason}\); what is saved is whole: give the command more"
    assert re.match(expected, capsys.readouterr().err)


def test_other_errors_of_the_device_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of the program needs its traceback."""

    def broken(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: a mistake")

    watched(monkeypatch, spoiled={1: broken})
    with pytest.raises(jax.errors.JaxRuntimeError, match="a mistake"):
        cli.main(command_words(small(tmp_path)))


PLACES: dict[str, tuple[Any, str, Callable]] = {
    "validation": (report, "eval_step", exhausted),
    "first step": (loop, "train_step", exhausted),
    "a mistake in the first step": (loop, "train_step", lambda *_, **__: {}["absent"]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_start_that_fails_before_its_first_step_leaves_the_folder_free(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The remedy, parts of fewer rows under the same --out, was refused: the run had "begun".

    The validation of step 0 goes too, it was another run's.
    """
    config = small(tmp_path)
    if importlib.util.find_spec("tensorboardX"):
        config = dataclasses.replace(
            config, loop=dataclasses.replace(config.loop, tensorboard=True)
        )
    module, name, error = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, error)
        if error is exhausted:
            assert cli.main(command_words(config)) == 1
            said = capsys.readouterr().err
            assert "No step was taken and nothing is left behind: other settings can have" in said
        else:
            with pytest.raises(KeyError):
                cli.main(command_words(config))
    assert not (tmp_path / "run").exists()
    less = dataclasses.replace(config, batch=dataclasses.replace(config.batch, accumulation=4))
    assert cli.main([*command_words(less), "--no-export"]) == 0


def test_a_run_that_goes_on_and_fails_at_once_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what this start wrote first: samples that were not there would not be written again."""
    config = small(tmp_path)
    watched(monkeypatch, spoiled={4: exhausted})
    assert cli.main(command_words(config)) == 1
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def write_and_fail(*_: Any, **__: Any) -> Any:
        (run / SAMPLES_FILE).write_text("{}")
        return exhausted()

    (run / SAMPLES_FILE).unlink(missing_ok=True)
    watched(monkeypatch, spoiled={4: write_and_fail})
    assert cli.main(command_words(config)) == 1
    assert (run / SAMPLES_FILE).read_text() == "{}"
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert before.keys() - {run / SAMPLES_FILE} == after.keys() - {run / SAMPLES_FILE}
    for path, content in before.items():
        assert path == run / SAMPLES_FILE or after[path].startswith(content), path


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("RESOURCE_EXHAUSTED: Failed to allocate", True),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", True),
        ("INTERNAL: a mistake", False),
    ],
)
def test_what_devices_say(said: str, expected: bool) -> None:
    assert is_out_of_memory(jax.errors.JaxRuntimeError(said)) is expected


def test_no_remedy_that_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """It advised to recompute a run that did."""
    config = small(tmp_path)
    config = dataclasses.replace(
        config,
        batch=dataclasses.replace(config.batch, accumulation=config.batch.size),
        compute=dataclasses.replace(config.compute, remat="block"),
    )
    watched(monkeypatch, spoiled={1: exhausted})
    assert cli.main(command_words(config)) == 1
    said = capsys.readouterr().err
    assert "A step needs less with a smaller compute.loss_chunk (now 64) or a smaller" in said
    assert "remat" not in said and "accumulation" not in said


def test_a_start_that_fails_after_its_first_step_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Control: what it logged stays, and other settings are refused."""
    config = small(tmp_path)
    watched(monkeypatch, spoiled={1: exhausted})
    assert cli.main(command_words(config)) == 1
    assert "No step is saved yet and nothing saved is lost" in capsys.readouterr().err
    for name in (CONFIG_FILE, METRICS_FILE):
        assert (tmp_path / "run" / name).exists()
    less = dataclasses.replace(config, batch=dataclasses.replace(config.batch, accumulation=4))
    assert cli.main(command_words(less)) == 2
    assert "holds a run with other settings" in capsys.readouterr().err
