"""Which settings bind a run that exists."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxcoder.errors import ConfigError
from train.config import BatchConfig, SourceConfig, TrainConfig
from train.run_folder import CONFIG_FILE, record_config

CONFIG = TrainConfig(data="stdlib", out="run")


def test_what_is_counted_in_the_data_does_not_bind_a_run(tmp_path: Path) -> None:
    """A run begun before this could be counted was refused: absent then, None now."""
    began = record_config(tmp_path, CONFIG)
    without(tmp_path, "source", "human_eval")
    counted = dataclasses.replace(CONFIG, source=SourceConfig(human_eval="HumanEval.jsonl"))
    for config in (CONFIG, counted):
        assert record_config(tmp_path, config) == (began.identity, False)


def without(run: Path, group: str, name: str) -> None:
    """The run's config as a version wrote it that did not have the setting yet."""
    path = run / CONFIG_FILE
    fields = json.loads(path.read_text())
    del fields["config"][group][name]
    path.write_text(json.dumps(fields))


def test_a_setting_that_came_later_is_its_default(tmp_path: Path) -> None:
    """Every run begun before a setting was added was refused, and nothing could be given for it."""
    began = record_config(tmp_path, CONFIG)
    without(tmp_path, "batch", "middle_weight")
    assert record_config(tmp_path, CONFIG) == (began.identity, False)
    heavier = dataclasses.replace(CONFIG, batch=BatchConfig(middle_weight=2.0))
    with pytest.raises(ConfigError, match=r"batch\.middle_weight: 1\.0 in the run, 2\.0 now"):
        record_config(tmp_path, heavier)


def test_a_setting_of_the_data_binds_a_run(tmp_path: Path) -> None:
    """Control: other documents are another run, also where the old config does not say which."""
    record_config(tmp_path, CONFIG)
    without(tmp_path, "source", "headers")
    with_headers = dataclasses.replace(CONFIG, source=SourceConfig(headers=True))
    with pytest.raises(ConfigError, match=r"source\.headers: False in the run, True now"):
        record_config(tmp_path, with_headers)
