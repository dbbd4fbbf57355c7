"""What a run starts from: the model's tokenizer is looked at before the run takes it over."""

import dataclasses
from pathlib import Path

import pytest
from training_run import run_config

from jaxcoder.errors import ConfigError, TokenizerError
from train.config import SourceConfig
from train.presets import smoke
from train.run_data import prepare_data
from train.run_folder import TOKENIZER_FILE
from train.start import find_origin, prepare_start


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "no such file; expected a file"), ("{", "not valid JSON")]
)
def test_a_model_without_a_usable_tokenizer_is_named(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    """It was a bare FileNotFoundError, or one about the copy in the run."""
    config, run = run_config(tmp_path), tmp_path / "run"
    run.mkdir()
    file = Path(config.model) / TOKENIZER_FILE
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(TokenizerError) as caught:
        prepare_start(config, run)
    assert str(caught.value).startswith(f"{file}: ")
    assert problem in str(caught.value)
    assert not list(run.iterdir())


def test_a_folder_without_a_file_that_the_preset_takes_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`smoke --data FOLDER` said "texts: no document": the preset takes three packages alone."""
    data, run = tmp_path / "code", tmp_path / "run"
    for folder in (data, run):
        folder.mkdir()
    (data / "mine.py").write_text("x = 1\n")
    config = dataclasses.replace(smoke(), data=str(data))
    with pytest.raises(ConfigError, match=r"source\.globs \('json/\*\.py'.* and source\.exclude"):
        prepare_start(config, run)
    with pytest.raises(ConfigError, match="no such file or folder"):
        prepare_start(dataclasses.replace(config, data=str(tmp_path / "nowhere")), run)
    assert capsys.readouterr().err == ""
    assert not list(run.iterdir())


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.2])
def test_a_run_that_holds_nothing_out_says_so(
    tmp_path: Path,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a few documents a small share is none, and nothing told why there was no validation.

    Control: where some are held out there is no such line.
    """
    monkeypatch.setenv("JAXCODER_CACHE", str(tmp_path / "cache"))
    config, run = run_config(tmp_path), tmp_path / "run"
    run.mkdir()
    config = dataclasses.replace(config, source=SourceConfig(validation_share=share))
    prepare_data(run, config, find_origin(config))
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    if share == 0.2:
        assert lines == []
    else:
        (line,) = lines
        assert f"of 24 documents none is held out (share {share})" in line
        assert "there is no validation" in line and "--source.validation-share" in line


def test_the_run_keeps_the_tokenizer_it_began_with(tmp_path: Path) -> None:
    """Bytes of the model's; what becomes of those later does not matter."""
    config, run = run_config(tmp_path), tmp_path / "run"
    run.mkdir()
    file = Path(config.model) / TOKENIZER_FILE
    content = file.read_bytes()
    prepare_start(config, run)
    file.write_text("{")
    assert prepare_start(config, run).tokenizer.vocab_size > 0
    assert (run / TOKENIZER_FILE).read_bytes() == content
