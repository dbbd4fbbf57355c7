"""What a start is refused for: all of it in one list, before the run directory is touched."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
from training_run import command_words, run_config

from jaxcoder.checkpoint import SINGLE_FILE
from jaxcoder.errors import CheckpointError, ConfigError, TokenizerError
from train import cli, start, start_checks
from train.config import LoraConfig, SourceConfig, TrainConfig
from train.loop import fit
from train.run_folder import CHECKPOINTS, CONFIG_FILE, TOKENIZER_FILE
from train.run_lock import LOCK_FILE
from train.start_checks import check_start

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token stores of a test go with it."""
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path / "cache"))


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder; files with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(config: TrainConfig, error: type[ValueError] = ConfigError) -> str:
    """What a start is refused with; it leaves nothing behind."""
    parent = Path(config.out).parent
    before = listing(parent)
    with pytest.raises(error) as caught:
        fit(config)
    assert listing(parent) == before
    return str(caught.value)


def test_settings_and_model_are_told_in_one_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It took three attempts to fine-tune the model inside the package."""
    run = tmp_path / "new" / "run"
    words = (
        *("finetune", "--model", str(PROJECT / "jaxcoder" / "demo"), "--out", str(run)),
        *("--data", str(tmp_path / "nowhere"), "--loop.steps", "20", "--lora.rank", "129"),
        *("--fim.rat", "0.9"),
    )
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    expected = (
        "--fim.rat: no such setting, expected --fim.rate",
        "optimizer.warmup_steps: 50, expected fewer than loop.steps 20",
        f"data: '{tmp_path / 'nowhere'}': no such file or folder",
        "batch.seq_len: 2048, expected at most the model's n_positions 512",
        "rank is 129, expected 0 to 128",
    )
    assert [line for line in expected if line not in said] == []
    assert f"{len(expected)} problems" in said
    assert not list(tmp_path.iterdir())


def test_a_window_longer_than_the_models_leaves_nothing(tmp_path: Path) -> None:
    """Control: one as long as the model's is none of the problems."""
    config = run_config(tmp_path)
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, seq_len=97))
    assert "batch.seq_len: 97, expected at most the model's n_positions 96" in refusal(config)
    fitting = dataclasses.replace(config, batch=dataclasses.replace(config.batch, seq_len=96))
    assert check_start(fitting).folder == Path(config.model)


def test_a_model_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    """Config, tokenizer and weights, each by itself; the error is that of the file."""
    config = run_config(tmp_path)
    folder = Path(config.model)
    for name, error in (
        (SINGLE_FILE, CheckpointError),
        (TOKENIZER_FILE, TokenizerError),
        ("config.json", ConfigError),
    ):
        (folder / name).rename(tmp_path / name)
        assert str(folder) in refusal(config, error)
        (tmp_path / name).rename(folder / name)
    assert "no such folder" in refusal(
        dataclasses.replace(config, model=str(tmp_path / "mdoel")), CheckpointError
    )


def test_weights_that_are_not_those_of_the_config_are_told(tmp_path: Path) -> None:
    """Shapes are known from the header; all documents were tokenised before."""
    config = run_config(tmp_path)
    path = Path(config.model) / "config.json"
    path.write_text(path.read_text().replace('"n_layer": 2', '"n_layer": 1'))
    assert "transformer.h.1." in refusal(config)


def test_new_weights_need_none(tmp_path: Path) -> None:
    """Nor does a run that has a checkpoint of its own."""
    config = run_config(tmp_path)
    (Path(config.model) / SINGLE_FILE).unlink()
    check_start(dataclasses.replace(config, fresh=True))
    (tmp_path / "run" / CHECKPOINTS / "step-00000002").mkdir(parents=True)
    (tmp_path / "run" / CONFIG_FILE).write_text('{"config": {}}')
    check_start(config)


def test_a_tokenizer_without_the_tokens_asked_for_is_told(tmp_path: Path) -> None:
    """Sentinels and the tokens of headers; control: without either setting it will do."""
    config = run_config(tmp_path)
    path = Path(config.model) / TOKENIZER_FILE
    definition = json.loads(path.read_text())
    for token in definition["added_tokens"]:
        token["content"] = token["content"].replace("fim_", "fom_").replace("reponame", "rename")
    vocab = definition["model"]["vocab"]
    definition["model"]["vocab"] = {
        name.replace("fim_", "fom_").replace("reponame", "rename"): number
        for name, number in vocab.items()
    }
    path.write_text(json.dumps(definition))
    headers = dataclasses.replace(config, source=SourceConfig(headers=True))
    said = refusal(headers)
    assert "2 problems" in said
    assert "<fim_prefix>" in said
    assert "source.headers: True, but the tokenizer has no special token <reponame>" in said
    plain = dataclasses.replace(config, fim=dataclasses.replace(config.fim, rate=0.0))
    check_start(plain)


def test_a_model_on_the_hub_is_not_fetched_for_mistaken_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take minutes to hear of a slip of the pen."""
    asked: list[str] = []

    def resolve(model: str, **_: object) -> Path:
        asked.append(model)
        return Path(run_config(tmp_path).model)

    monkeypatch.setattr(start, "resolve", resolve)
    config = dataclasses.replace(run_config(tmp_path), model="bigcode/tiny_starcoder_py")
    mistaken = dataclasses.replace(config, lora=LoraConfig(rank=-1))
    assert "lora.rank: -1" in refusal(mistaken)
    assert asked == []
    check_start(config)
    assert asked == ["bigcode/tiny_starcoder_py"]


def test_values_of_another_type_are_told_once(tmp_path: Path) -> None:
    """What only the model shows is compared with numbers alone."""
    config = run_config(tmp_path)
    config = dataclasses.replace(
        config,
        batch=dataclasses.replace(config.batch, seq_len="64"),
        lora=LoraConfig(rank="4"),
        fim=dataclasses.replace(config.fim, rate=None),
    )
    said = refusal(config)
    for line in ("batch.seq_len: '64', expected", "lora.rank: '4', expected", "fim.rate: None"):
        assert said.count(line) == 1
    assert "3 problems" in said


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model's folder has a config.json too, and a start wrote its lock beside it."""
    config = run_config(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    model = dataclasses.replace(config, out=config.model)
    notes = dataclasses.replace(config, out=str(tmp_path / "notes"))
    assert f"out: {model.out!r}: its config.json is not one of a run" in refusal(model)
    assert f"out: {notes.out!r}: holds todo.txt and no run" in refusal(notes)
    before = listing(tmp_path)
    assert cli.main(command_words(model)) == 2
    for command in ("export", "plot"):
        assert cli.main([command, config.model]) == 2
        assert cli.main([command, notes.out]) == 2
    assert listing(tmp_path) == before
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err


def test_a_folder_that_a_killed_start_left_is_taken(tmp_path: Path) -> None:
    """Its lock, an empty folder of checkpoints, a file half written: none says anything."""
    config = run_config(tmp_path)
    (tmp_path / "run" / CHECKPOINTS).mkdir(parents=True)
    (tmp_path / "run" / LOCK_FILE).touch()
    (tmp_path / "run" / ".config.json.partial-1-0a1b2c3d").touch()
    check_start(config)


def test_an_error_after_the_checks_leaves_nothing_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that turn out unusable once they are read, in a folder that was new or empty."""
    config = run_config(tmp_path)
    empty = dataclasses.replace(config, source=SourceConfig(globs=("*.txt",)))
    assert "no document to train on" in refusal(empty)
    deep = dataclasses.replace(empty, out=str(tmp_path / "a" / "b"))
    (tmp_path / "run").mkdir()
    assert "no document to train on" in refusal(empty)
    assert "no document to train on" in refusal(deep)
    assert not (tmp_path / "a").exists()
    capsys.readouterr()


def test_a_signal_during_the_checks_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fetching a model takes minutes: SIGTERM then ends it, with status 0 and nothing left."""

    def fetch(config: TrainConfig) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal must end this")

    monkeypatch.setattr(start_checks, "find_origin", fetch)
    config = run_config(tmp_path)
    before = listing(tmp_path)
    assert not fit(config).is_finished
    assert "SIGTERM: ended before the next step" in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_without_a_run_the_current_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing --out is all that is wrong, whatever lies where the command is typed."""
    config = dataclasses.replace(run_config(tmp_path), out="")
    here = tmp_path / "here"
    here.mkdir()
    (here / TOKENIZER_FILE).write_text("{}")
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError) as caught:
        check_start(config)
    assert "out:" in str(caught.value) and TOKENIZER_FILE not in str(caught.value)


def test_a_name_that_the_system_refuses_is_one_of_the_list(tmp_path: Path) -> None:
    """Too long for a file, or of a user who is not there; the rest is told beside it."""
    config = run_config(tmp_path)
    batch = dataclasses.replace(config.batch, seq_len=0)
    for changed in ({"data": "x" * 300}, {"model": "~nosuch-user/model"}):
        said = refusal(dataclasses.replace(config, batch=batch, **changed))
        assert "batch.seq_len: 0" in said
        assert "x" * 300 not in changed.values() or "too long" in said


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    """It was an error about the lock, which nobody had asked for."""
    config = run_config(tmp_path)
    Path(config.out).write_text("mine")
    said = refusal(config)
    assert "out:" in said and "is a file, expected a folder" in said
