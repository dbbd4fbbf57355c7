"""Every mistake of a training configuration in one error; presets have none of their own."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

from jaxcoder.errors import ConfigError
from train.config import (
    BatchConfig,
    FimConfig,
    LoopConfig,
    LoraConfig,
    OptimizerConfig,
    ShapeConfig,
    TrainConfig,
)
from train.config_checks import check_config, setting_names, window_problems
from train.pieces import RESERVE
from train.presets import PRESETS

GOOD = TrainConfig(data="stdlib", out="run")


def message_of(config: TrainConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    return str(caught.value)


def changed(config: Any, name: str, value: object) -> Any:
    """`config` with the field of this dotted name replaced."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(
        config, **{first: changed(getattr(config, first), rest, value) if rest else value}
    )


def value_of(config: Any, name: str) -> object:
    return functools.reduce(getattr, name.split("."), config)


def test_the_defaults_are_accepted_once_data_and_run_are_named() -> None:
    check_config(GOOD)
    message = message_of(TrainConfig())
    assert "data: empty" in message
    assert "out: empty" in message


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_are_accepted_once_data_and_run_are_named(
    preset: Callable[[], TrainConfig],
) -> None:
    """Control: without a folder, or with a warm-up as long as the run, they are not."""
    config = dataclasses.replace(preset(), data="stdlib", out="run")
    check_config(config)
    assert config.preset == preset.__name__
    assert "out: empty" in message_of(dataclasses.replace(config, out=""))
    too_long = changed(config, "optimizer.warmup_steps", config.loop.steps)
    assert "optimizer.warmup_steps" in message_of(too_long)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_presets_docstring_has_its_command(preset: Callable[[], TrainConfig]) -> None:
    assert f"python -m train {preset.__name__} " in (preset.__doc__ or "")


def test_all_mistakes_are_listed_at_once() -> None:
    """Each with its value and what was expected; the twin with them mended is accepted."""
    bad = TrainConfig(
        data="stdlib",
        out="run",
        shape=ShapeConfig(n_positions=8192, n_embd=250, n_head=4),
        fim=FimConfig(rate=1.5),
        batch=BatchConfig(size=10, accumulation=4, seq_len=8193),
        optimizer=OptimizerConfig(peak_lr=-1e-4, warmup_steps=2000),
        loop=LoopConfig(steps=1000, keep=0),
        lora=LoraConfig(rank=4, targets=("attn/q", "attn/k")),
    )
    message = message_of(bad)
    expected = [
        "shape.n_embd: 250, expected a multiple of shape.n_head 4",
        "fim.rate: 1.5, expected a number from 0 to 1",
        "batch.accumulation: 4, expected a divisor of batch.size 10",
        "batch.seq_len: 8193, expected at most the model's n_positions 8192",
        "optimizer.peak_lr: -0.0001, expected a finite number above 0",
        "optimizer.warmup_steps: 2000, expected fewer than loop.steps 1000",
        "loop.keep: 0, expected an integer of 1 or more",
        "lora.rank: 4 without a model",
        "lora.targets: attn/q, attn/k, expected",
    ]
    assert [line for line in expected if line not in message] == []
    assert f"{len(expected)} problems" in message
    assert "mend the settings named" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, True, "1", None])
def test_every_number_has_a_rule(value: object) -> None:
    """A field added without one would let these through."""
    names = [name for name in setting_names(GOOD) if type(value_of(GOOD, name)) in (int, float)]
    assert len(names) > 30
    for name in names:
        assert f"{name}: {value!r}, expected" in message_of(changed(GOOD, name, value))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("fim.rate", 1.5, "a number from 0 to 1"),
        ("fim.spm_rate", -0.5, "a number from 0 to 1"),
        ("fim.line_rate", 2, "a number from 0 to 1"),
        ("source.validation_share", 1.0, "a number from 0 to below 1"),
        ("optimizer.beta2", 1.0, "below 1"),
        ("optimizer.peak_lr", 0.0, "above 0"),
        ("batch.size", 8.0, "an integer of 1 or more"),
        ("batch.size", "8", "an integer of 1 or more"),
        ("loop.steps", 0, "an integer of 1 or more"),
        ("fim.level", "file", "context or document"),
        ("batch.documents", "packed", "separate or joined"),
        ("compute.dtype", "float16", "auto or float32 or bfloat16"),
        ("seed", 2**32, "an integer from 0 to 4294967295"),
        ("batch.seq_len", 22, "at least 23, of which 20 are kept for fill-in-the-middle"),
        ("batch.piece_tokens", (3, 64), "two integers of 4 or more"),
        ("batch.piece_tokens", (8.0, 64), "two integers of 4 or more"),
        ("batch.piece_tokens", (64, 8), "the shorter first"),
        ("batch.piece_tokens", (64,), "two integers of 4 or more"),
        ("batch.piece_tokens", 64, "two integers of 4 or more"),
        ("batch.piece_tokens", None, "two integers of 4 or more"),
        ("lora.targets", None, "each once"),
        ("shape.vocab_size", 274, "at least 275: 19 special tokens and 256 bytes"),
        ("revision", "main", "--model with them"),
        ("fresh", True, "--model with them"),
        ("lora.targets", ("attn/q", "attn/q"), "each once"),
    ],
)
def test_one_mistake_is_named(name: str, value: object, expected: str) -> None:
    message = message_of(changed(GOOD, name, value))
    assert name in message
    assert expected in message
    assert "problems" not in message


def test_the_smallest_sizes_are_accepted() -> None:
    """As small as where they are used: smaller ones were refused after the data had been read."""
    check_config(changed(GOOD, "batch.seq_len", 23))
    check_config(changed(GOOD, "shape.vocab_size", 275))
    check_config(changed(changed(GOOD, "model", "some/model"), "shape.vocab_size", 1))
    assert "at least 23" in message_of(
        changed(changed(GOOD, "model", "some/model"), "batch.seq_len", 22)
    )


def test_lines_are_found_in_characters_only() -> None:
    bad = changed(changed(GOOD, "fim.line_rate", 0.5), "fim.cut", "token")
    assert "fim.line_rate: 0.5 with fim.cut 'token'" in message_of(bad)
    check_config(changed(GOOD, "fim.line_rate", 0.5))
    check_config(changed(GOOD, "fim.cut", "token"))


def test_a_loss_on_middles_needs_middles() -> None:
    bad = changed(changed(GOOD, "batch.loss", "middle"), "fim.rate", 0.0)
    assert "nothing would count" in message_of(bad)
    check_config(changed(GOOD, "batch.loss", "middle"))
    check_config(changed(GOOD, "fim.rate", 0.0))


def test_pieces_are_cut_where_documents_are() -> None:
    bad = changed(changed(GOOD, "batch.piece_tokens", (32, 64)), "fim.level", "document")
    assert "batch.piece_tokens: (32, 64) with fim.level 'document'" in message_of(bad)
    check_config(changed(GOOD, "batch.piece_tokens", (4, 64)))
    check_config(changed(GOOD, "fim.level", "document"))


def test_the_shortest_piece_is_shorter_than_a_row() -> None:
    """Else all would be equally long again, which is what the lengths are to avoid."""
    room = GOOD.batch.seq_len + 1 - RESERVE
    assert f"a shortest below the {room} tokens" in message_of(
        changed(GOOD, "batch.piece_tokens", (room, 5000))
    )
    check_config(changed(GOOD, "batch.piece_tokens", (room - 1, 5000)))


def test_a_middle_weighs_more_than_something_else() -> None:
    bad = changed(changed(GOOD, "batch.middle_weight", 2.0), "batch.loss", "middle")
    assert "batch.middle_weight: 2.0 with batch.loss 'middle'" in message_of(bad)
    without = changed(changed(GOOD, "fim.rate", 0.0), "batch.middle_weight", 2.0)
    assert "batch.middle_weight: 2.0 with fim.rate 0" in message_of(without)
    check_config(changed(GOOD, "batch.middle_weight", 2.0))


def test_a_model_may_be_had_in_a_revision() -> None:
    config = dataclasses.replace(GOOD, model="some/model", revision="main")
    check_config(config)
    message = message_of(dataclasses.replace(config, revision=""))
    assert "revision: '', expected a commit, a branch or nothing" in message


def test_the_shape_is_not_used_beside_a_model() -> None:
    """The window is checked against the model's own positions, where these are known."""
    config = changed(changed(GOOD, "model", "some/model"), "batch.seq_len", 4096)
    check_config(config)
    assert "n_positions" in message_of(dataclasses.replace(config, model=""))
    assert window_problems(8193, 8192) == [
        "batch.seq_len: 8193, expected at most the model's n_positions 8192"
    ]
    assert window_problems(8192, 8192) == []


def test_what_was_found_elsewhere_is_listed_with_the_rest() -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(changed(GOOD, "fim.rate", 1.5), further=["--fim.rat: no such setting"])
    assert "2 problems" in str(caught.value)
    assert "--fim.rat: no such setting" in str(caught.value)
    assert "fim.rate: 1.5" in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    """Frozen all the way down, tuples for lists: so a preset is the same at every call."""
    for config in (GOOD, *(make() for make in PRESETS.values())):
        assert hash(config) == hash(dataclasses.replace(config))
