"""Which settings bind a run that exists."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxcoder.errors import ConfigError
from train.config import SourceConfig, TrainConfig
from train.run_folder import CONFIG_FILE, record_config

CONFIG = TrainConfig(data="stdlib", out="run")


def test_what_is_counted_in_the_data_does_not_bind_a_run(tmp_path: Path) -> None:
    """A run begun before this could be counted was refused: absent then, None now."""
    began = record_config(tmp_path, CONFIG)
    path = tmp_path / CONFIG_FILE
    fields = json.loads(path.read_text())
    del fields["config"]["source"]["human_eval"]
    path.write_text(json.dumps(fields))
    counted = dataclasses.replace(CONFIG, source=SourceConfig(human_eval="HumanEval.jsonl"))
    for config in (CONFIG, counted):
        assert record_config(tmp_path, config) == (began.identity, False)


def test_a_setting_of_the_data_binds_a_run(tmp_path: Path) -> None:
    """Control: other documents are another run, also where the old config does not say which."""
    record_config(tmp_path, CONFIG)
    path = tmp_path / CONFIG_FILE
    fields = json.loads(path.read_text())
    del fields["config"]["source"]["headers"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"source\.headers: absent in the run, False now"):
        record_config(tmp_path, CONFIG)
