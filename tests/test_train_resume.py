"""What can go wrong between the starts of a run: each is one clear error or a clean end.

Signals go to processes of their own, since the handlers are the process's; all else happens here.
In the end a run that was disturbed is, bit for bit, the run that was left alone.
"""

import dataclasses
import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from read_only import make_read_only
from training_run import Undisturbed, command_words, run_config

from benchmarks.interrupted_run import Link, differences, finished, start
from benchmarks.interrupted_start import Interruption
from jaxcoder.errors import CheckpointError, ConfigError
from train import cli, export, loop, metrics, step
from train.checkpoint_folder import committed_steps, step_folder
from train.checkpoints import Checkpoints
from train.config import LoraConfig, TrainConfig
from train.data import BatchSource
from train.loop import Outcome, fit
from train.metrics import JsonLines, read_json_lines
from train.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    DATA_FILE,
    METRICS_FILE,
    START_FILE,
    record_config,
)
from train.run_lock import run_lock
from train.signals import Stopped, stop_on_signals

pytest_plugins = ["undisturbed_run"]

SIGNALS = {
    "before the tokens are there": Interruption("rename to tokens-", signal=signal.SIGTERM),
    "before the first step": Interruption("validation", signal=signal.SIGTERM),
    "in a step": Interruption("step", 3, signal=signal.SIGINT),
    "twice during a save": Interruption("fsync", 4, signal=signal.SIGTERM, times=2),
    "to end at once": Interruption("step", 6, signal=signal.SIGINT, times=2),
    "in a validation": Interruption("validation", signal=signal.SIGHUP),
}


class Signalled(NamedTuple):
    """A run that was sent signal after signal until it ended."""

    config: TrainConfig
    links: dict[str, Link]


@pytest.fixture(scope="module")
def signalled(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Signalled:
    """Each start is sent one of `SIGNALS`; the last is left alone."""
    folder = tmp_path_factory.mktemp("signalled")
    config = dataclasses.replace(undisturbed.config, out=str(folder / "run"))
    variables = undisturbed.variables | {"JAXCODER_CACHE": str(folder / "cache")}
    links = {
        name: start(config, interruption, threads=1, variables=variables)
        for name, interruption in SIGNALS.items()
    }
    links["end"] = start(config, Interruption(), threads=1, variables=variables)
    return Signalled(config, links)


def test_signals_end_a_run_cleanly(signalled: Signalled) -> None:
    """Exit status 0 within 10 s, the current step saved; two SIGINTs end at once, all readable."""
    links = signalled.links
    for name in SIGNALS:
        link = links[name]
        assert link.status == (130 if name == "to end at once" else 0), link.said
        assert 0 < link.seconds < 10
        assert not link.unreadable
        assert "Traceback" not in link.said
    assert "SIGTERM: ended before the next step" in links["before the tokens are there"].said
    assert "SIGTERM: ended after step 0 of 10" in links["before the first step"].said
    assert links["before the first step"].committed == 0
    assert "SIGINT: ended after step 3 of 10" in links["in a step"].said
    assert links["in a step"].committed == 3
    saved = links["twice during a save"]
    assert saved.committed >= 5 and f"SIGTERM: ended after step {saved.committed} of" in saved.said
    assert links["to end at once"].committed >= saved.committed
    validating = links["in a validation"]
    assert f"SIGHUP: ended after step {validating.committed} of 10" in validating.said


def test_signals_change_nothing(signalled: Signalled, undisturbed: Undisturbed) -> None:
    """Also the validation that a signal cut short is there, once."""
    finished(signalled.links["end"])
    assert differences(undisturbed.config, signalled.config) == []
    assert not [path.name for path in Path(signalled.config.out).rglob(".*")]


class Paused(NamedTuple):
    """A run that has a checkpoint of its steps 4 and 6, of 10; a copy of its own for each test."""

    config: TrainConfig
    run: Path

    def main(self, *words: str) -> int:
        """Start the command of the run again, here."""
        return cli.main([*command_words(self.config), "--no-export", *words])


@pytest.fixture(scope="module")
def half_done(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of model, data and run."""
    folder = tmp_path_factory.mktemp("half_done")
    stop = Interruption("step", 6, signal=signal.SIGTERM)
    link = start(run_config(folder), stop, threads=1, variables=undisturbed.variables)
    assert link.committed == 6, link.said
    return folder


@pytest.fixture
def paused(half_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paused:
    """A copy in another place."""
    shutil.copytree(half_done, tmp_path, dirs_exist_ok=True)
    config = run_config(tmp_path)
    path = Path(config.out) / CONFIG_FILE
    path.write_text(path.read_text().replace(f"{half_done}/", f"{tmp_path}/"))
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path / "cache"))
    return Paused(config, Path(config.out))


@pytest.fixture(scope="module")
def completed(half_done: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The run taken to its end in this process, to compare with."""
    folder = tmp_path_factory.mktemp("completed")
    shutil.copytree(half_done / "run", folder / "run")
    config = dataclasses.replace(run_config(half_done), out=str(folder / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCODER_CACHE", str(folder / "cache"))
        assert fit(config) == Outcome(10, True)
    return config


def _stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """A SIGTERM when this step is dispatched."""
    make_report = loop.Report

    def report(number: int, *fields: Any) -> loop.Report:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_report(number, *fields)

    patch.setattr(loop, "Report", report)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run, except for its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_same_command_goes_on(paused: Paused, undisturbed: Undisturbed, capfd) -> None:
    """No flag is needed, and a run that is done says so and is left alone."""
    assert committed_steps(paused.run / CHECKPOINTS) == [4, 6]
    assert paused.main() == 0
    assert "going on after step 6 of 10" in capfd.readouterr().err
    assert committed_steps(paused.run / CHECKPOINTS) == [8, 10]
    before = _contents(paused.run)
    assert fit(paused.config) == Outcome(10, True)
    assert _contents(paused.run) == before


@pytest.mark.parametrize("lora", [False, True])
def test_going_on_needs_the_checkpoint_alone(
    lora: bool, tmp_path: Path, half_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights begun with were loaded too, and held beside those of the checkpoint.

    Control: a first start cannot do without them.
    """
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path / "cache"))
    shutil.copytree(half_done / "model", tmp_path / "model")
    shutil.copytree(half_done / "data", tmp_path / "data")
    config = run_config(tmp_path, steps=3, eval_every=3)
    if lora:
        config = dataclasses.replace(config, lora=LoraConfig(rank=2, targets=("attn/q",)))
    with monkeypatch.context() as patch:
        _stop_after(patch, 1)
        assert fit(config) == Outcome(1, False)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert fit(config) == Outcome(3, True)
    assert export.export_run(Path(config.out)).is_dir()
    with pytest.raises(CheckpointError, match="safetensors"):
        fit(dataclasses.replace(config, out=str(tmp_path / "another")))


def test_no_resume_refuses_a_run_that_exists(paused: Paused, capfd) -> None:
    """--no-resume is for scripts that must not add to a run by mistake."""
    before = _contents(paused.run)
    assert paused.main("--no-resume") == 2
    assert "holds a run, and resume is off; choose another --out" in capfd.readouterr().err
    assert _contents(paused.run) == before


def test_corrupt_newest_checkpoint(paused: Paused, completed: TrainConfig, capfd) -> None:
    """One error with the way out; taken, it says what is lost, and the steps come again."""
    newest = step_folder(paused.run / CHECKPOINTS, 6)
    _flip(max(newest.rglob("d/*"), key=lambda path: path.stat().st_size))
    before = _contents(paused.run)
    assert paused.main() == 2
    said = capfd.readouterr().err
    assert "step-00000006: the newest checkpoint is not usable" in said
    assert "continue from step 4, losing 2 steps, with --allow-older-checkpoint" in said
    assert "Traceback" not in said
    assert _contents(paused.run) == before
    assert paused.main("--allow-older-checkpoint") == 0
    said = capfd.readouterr().err
    assert "continuing from step 4: 2 steps are lost and will be done again" in said
    assert "going on after step 4 of 10" in said
    assert differences(completed, paused.config) == []


def test_changed_settings_are_all_listed(paused: Paused, capfd) -> None:
    """Every field that differs, with both values; nothing is touched."""
    before = _contents(paused.run)
    words = ("--seed", "3", "--optimizer.peak-lr", "0.5", "--loop.steps", "20", "--batch.size", "8")
    assert paused.main(*words) == 2
    said = capfd.readouterr().err
    assert f"{paused.run}: holds a run with other settings" in said
    for line in (
        "batch.size: 4 in the run, 8 now",
        "loop.steps: 10 in the run, 20 now",
        "optimizer.peak_lr: 0.01 in the run, 0.5 now",
        "seed: 0 in the run, 3 now",
    ):
        assert f"\n  - {line}" in said
    assert said.count("\n  - ") == 4
    assert _contents(paused.run) == before


def test_settings_that_compute_nothing_may_change(paused: Paused) -> None:
    """How often a run is logged and saved does not bind it."""
    words = ("--loop.save-every", "5", "--loop.keep", "1", "--compute.prefetch-threads", "0")
    assert paused.main(*words) == 0
    assert committed_steps(paused.run / CHECKPOINTS) == [10]


def test_changed_data_are_refused(paused: Paused, capfd) -> None:
    """Batches of other documents are another run; put back, the run goes on."""
    document = Path(paused.config.data) / "document_003.py"
    text = document.read_text()
    document.write_text(text + "x = 1\n")
    before = _contents(paused.run)
    assert paused.main() == 2
    said = capfd.readouterr().err
    recorded = json.loads((paused.run / DATA_FILE).read_text())["fingerprint"]["documents"]
    assert f"data: documents: {recorded} when the run began" in said
    assert _contents(paused.run) == before
    document.write_text(text)
    assert paused.main() == 0


def test_changed_model_is_refused(paused: Paused, capfd) -> None:
    """A config beside the weights that computes something else, in a field no shape shows."""
    path = Path(paused.config.model) / "config.json"
    fields = json.loads(path.read_text())
    assert fields["layer_norm_epsilon"] == 1e-05
    path.write_text(json.dumps(fields | {"layer_norm_epsilon": 1e-3}))
    assert paused.main() == 2
    said = capfd.readouterr().err
    assert f"{paused.run / START_FILE}: the run began with another model or arithmetic" in said
    assert "\n  - model.layer_norm_epsilon: 1e-05 in the run, 0.001 now" in said
    assert said.count("\n  - ") == 1


def test_changed_arithmetic_is_refused(paused: Paused, capfd) -> None:
    """Other random numbers or another type of operands, as another device may bring."""
    path = paused.run / START_FILE
    fields = json.loads(path.read_text())
    fields["compute"] |= {"dtype": "bfloat16", "jax_default_prng_impl": "rbg"}
    path.write_text(json.dumps(fields))
    assert paused.main() == 2
    said = capfd.readouterr().err
    assert "compute.dtype: 'bfloat16' in the run, 'float32' now" in said
    assert "compute.jax_default_prng_impl: 'rbg' in the run, 'threefry2x32' now" in said


def test_other_versions_are_said(paused: Paused, capfd) -> None:
    """They may round otherwise, which is no reason to refuse."""
    path = paused.run / CONFIG_FILE
    fields = json.loads(path.read_text())
    now = fields["versions"]["jax"]
    fields["versions"]["jax"] = "0.1.0"
    path.write_text(json.dumps(fields))
    assert paused.main() == 0
    said = capfd.readouterr().err
    assert "versions are not those that the run began with" in said
    assert f"jax 0.1.0 -> {now}" in said


def test_run_of_an_earlier_version_goes_on(paused: Paused) -> None:
    """It has no identity and no record of model and data: they are written now, and bind it."""
    path = paused.run / CONFIG_FILE
    fields = json.loads(path.read_text())
    del fields["run"]
    path.write_text(json.dumps(fields))
    for name in (START_FILE, DATA_FILE):
        (paused.run / name).unlink()
    assert fit(paused.config) == Outcome(10, True)
    (Path(paused.config.data) / "document_004.py").unlink()
    with pytest.raises(ConfigError, match="not what the run began with"):
        fit(paused.config)


@pytest.mark.parametrize("name", [CONFIG_FILE, START_FILE, DATA_FILE])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"config": 1, "fingerprint": 2}'])
def test_damaged_record_is_one_error(paused: Paused, name: str, content: str, capfd) -> None:
    """A record that says nothing is not taken for a new run."""
    (paused.run / name).write_text(content)
    before = _contents(paused.run)
    assert paused.main() == 2
    said = capfd.readouterr().err
    assert name in said or (name == CONFIG_FILE and "absent in the run" in said)
    assert "Traceback" not in said
    assert _contents(paused.run) == before


def test_checkpoint_of_another_run_is_refused(paused: Paused, half_done: Path, capfd) -> None:
    """Copied in by mistake, it has the right shapes and the wrong numbers."""
    path = paused.run / CONFIG_FILE
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"run": "0123456789abcdef"}))
    assert paused.main() == 2
    said = capfd.readouterr().err
    assert (
        f"step-00000006: is of another run ({fields['run']!r}, expected '0123456789abcdef')" in said
    )


def test_checkpoint_beyond_the_last_step_is_refused(paused: Paused, capfd) -> None:
    """The steps would be looked for without end."""
    path = paused.run / CONFIG_FILE
    path.write_text(path.read_text().replace('"steps": 10', '"steps": 5'))
    config = dataclasses.replace(
        paused.config, loop=dataclasses.replace(paused.config.loop, steps=5)
    )
    with pytest.raises(CheckpointError, match=r"of step 6, expected at most loop\.steps 5"):
        fit(config)
    capfd.readouterr()


def test_second_start_is_refused(paused: Paused, capfd) -> None:
    """It names the process that holds the run, and reads or writes nothing."""
    before = _contents(paused.run)
    with run_lock(paused.run):
        assert paused.main() == 2
    said = capfd.readouterr().err
    assert f"{paused.run}: this run is being written by process {os.getpid()} on " in said
    assert _contents(paused.run) == before


def test_full_disk(paused: Paused, completed: TrainConfig, undisturbed: Undisturbed) -> None:
    """The run ends with the path and the bytes; what was saved stays, and the run goes on later."""
    variables = undisturbed.variables | {"JAXCODER_CACHE": os.environ["JAXCODER_CACHE"]}
    full = Interruption(file_bytes=16_000)
    link = start(paused.config, full, threads=1, variables=variables)
    assert link.status == 2, link.said
    assert "step-00000008: cannot be written" in link.said
    assert "older checkpoints are as they were" in link.said
    assert committed_steps(paused.run / CHECKPOINTS) == [4, 6]
    assert paused.main() == 0
    assert differences(completed, paused.config) == []


def test_file_in_the_place_of_a_folder(tmp_path: Path, half_done: Path, monkeypatch, capfd) -> None:
    """A run that cannot be written: an error, and nothing left that would refuse other settings."""
    monkeypatch.setenv("JAXCODER_CACHE", str(half_done / "cache"))
    config = dataclasses.replace(run_config(half_done), out=str(tmp_path / "run"))
    Path(config.out).mkdir()
    (Path(config.out) / CHECKPOINTS).write_text("")
    with pytest.raises(CheckpointError, match=r"run/checkpoints: cannot be made \(File exists\)"):
        fit(config)
    assert sorted(_contents(Path(config.out))) == [CHECKPOINTS]
    in_file = dataclasses.replace(config, out=str(tmp_path / "run" / CHECKPOINTS))
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        fit(in_file)
    capfd.readouterr()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        (".", "lock: cannot be opened ({}); expected a folder to write the run into"),
        (CHECKPOINTS, "run/checkpoints: checkpoints cannot be written here ({}); check the mode"),
    ],
)
def test_read_only_folder(
    place: str, said: str, code: int, paused: Paused, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Found before the first step, not at the first save; nothing is lost."""
    before = _contents(paused.run)
    with monkeypatch.context() as patch:
        make_read_only(patch, paused.run / place, code=code)
        assert paused.main() == 2
    written = capfd.readouterr().err
    assert said.format(os.strerror(code)) in written
    assert "Traceback" not in written
    assert _contents(paused.run) == before
    assert committed_steps(paused.run / CHECKPOINTS) == [4, 6]


def test_read_only_parent(paused: Paused, tmp_path: Path, monkeypatch, capfd) -> None:
    """The folder of a new run, and that of its checkpoints, cannot be made."""
    out = tmp_path / "other" / "run"
    config = dataclasses.replace(paused.config, out=str(out))
    with monkeypatch.context() as patch:
        make_read_only(patch, tmp_path)
        with pytest.raises(ConfigError, match=r"lock: cannot be opened \(Read-only file system\)"):
            fit(config)
    assert not out.parent.exists()
    with monkeypatch.context() as patch:
        mkdir = os.mkdir

        def refuse(path: Any, *arguments: Any) -> None:
            if Path(path).name == CHECKPOINTS:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            mkdir(path, *arguments)

        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(CheckpointError, match=r"checkpoints: cannot be made \(Read-only file"):
            fit(config)
    assert not _contents(out)
    capfd.readouterr()


def test_read_only_in_the_middle(
    paused: Paused, completed: TrainConfig, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """A disk that turns read-only: the next save ends the run, and it goes on from the last."""
    save = Checkpoints.save
    with monkeypatch.context() as patch:

        def save_read_only(*arguments: Any) -> None:
            make_read_only(patch, paused.run / CHECKPOINTS)
            save(*arguments)

        patch.setattr(Checkpoints, "save", save_read_only)
        assert paused.main() == 2
    said = capfd.readouterr().err
    assert "step-00000008: cannot be written (OSError: [Errno 30] Read-only file system" in said
    assert "older checkpoints are as they were" in said
    assert committed_steps(paused.run / CHECKPOINTS) == [4, 6]
    assert paused.main() == 0
    assert differences(completed, paused.config) == []


def test_mistaken_first_start_leaves_the_folder_free(
    tmp_path: Path, half_done: Path, monkeypatch, capfd
) -> None:
    """A slip of the pen in --data is mended under the same --out."""
    monkeypatch.setenv("JAXCODER_CACHE", str(half_done / "cache"))
    config = dataclasses.replace(run_config(half_done), out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no such file or folder"):
        fit(dataclasses.replace(config, data=str(tmp_path / "dtaa")))
    assert not list(tmp_path.iterdir())
    Path(config.out).mkdir()
    assert record_config(Path(config.out), config).is_new
    capfd.readouterr()


def test_totals_go_on(paused: Paused, monkeypatch) -> None:
    """A count since the beginning does not begin anew with a start."""
    make_report = loop.Report

    def report(number: int, batch: Any, contents: Any, *fields: Any) -> loop.Report:
        return make_report(number, batch, contents._replace(overflows=number), *fields)

    monkeypatch.setattr(loop, "Report", report)
    _stop_after(monkeypatch, 8)
    assert fit(paused.config) == Outcome(8, False)
    assert fit(paused.config) == Outcome(10, True)
    lines = read_json_lines(paused.run / METRICS_FILE)
    counted = [line["fim_overflows"] for line in lines if "loss" in line and line["step"] > 6]
    assert counted == [7, 15, 24, 34]


def test_signal_in_an_export_lets_it_end(
    paused: Paused, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """The run is done and saved by then; half an export would be none."""

    def export_run(run: Path, folder: Path, *, step: int) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return folder

    monkeypatch.setattr(export, "export_run", export_run)
    assert cli.main(command_words(paused.config)) == 0
    assert capfd.readouterr().out == f"{paused.run / 'export-10'}\n"


def test_signal_never_tears_a_computation(paused: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception amid a compilation of JAX is a crash at the end of the process.

    The computation comes to its end, and the next one is not begun.
    """
    events = []

    def eval_step(*arguments: Any, **keywords: Any) -> Any:
        events.append("begin")
        os.kill(os.getpid(), signal.SIGTERM)
        found = step.eval_step(*arguments, **keywords)
        events.append("end")
        return found

    monkeypatch.setattr("train.report.eval_step", eval_step)
    assert fit(paused.config) == Outcome(8, False)
    assert events == ["begin", "end"]


def test_metrics_that_cannot_be_written_do_not_end_a_run(
    tmp_path: Path, monkeypatch, capfd
) -> None:
    """Said once; what is written later is whole lines again, and the gap is said."""
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, after_step=-1)
    lines.write({"step": 1})

    def full(*_: Any, **__: Any) -> Any:
        with path.open("a") as file:
            file.write('{"step": ')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics, "open", full, raising=False)
    lines.write({"step": 2})
    lines.write({"step": 3})
    said = capfd.readouterr().err
    assert said.count("cannot be written (No space left on device)") == 1
    monkeypatch.undo()
    lines.write({"step": 4})
    lines.write({"step": 5})
    assert "is written again; the lines that came between are missing" in capfd.readouterr().err
    assert read_json_lines(path) == [{"step": 1}, {"step": 4}, {"step": 5}]


def test_an_error_ends_the_threads_that_prepare_batches(
    paused: Paused, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Also where the error's traceback is held, as a notebook holds it."""
    closed = []

    def batches(source: BatchSource, start_step: int) -> Iterator[Any]:
        try:
            yield start_step, *source.batch(start_step)
            raise ValueError("a mistake in the data")
        finally:
            closed.append(start_step)

    def bad_step(*_: Any, **__: Any) -> Any:
        raise RuntimeError("an error in a step")

    monkeypatch.setattr(BatchSource, "iterate", batches)
    monkeypatch.setattr(loop, "train_step", bad_step)
    with pytest.raises(RuntimeError, match="in a step") as caught:
        fit(paused.config)
    assert closed == [6], caught
    capfd.readouterr()


def test_ignored_signals_stay_ignored() -> None:
    """Under nohup the end of the terminal does not end the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.name == "SIGTERM"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_immediate_ends_its_block_alone() -> None:
    """A signal before it or inside it; after it, the step in progress is not torn."""
    with stop_on_signals() as stop:
        with pytest.raises(Stopped), stop.immediate():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), stop.immediate():
            raise AssertionError("the block must not be entered")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
