"""Metrics files, the bar, and the convention by which a device's use is told."""

import dataclasses
import json
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from model_cases import MHA, MQA, random_tensors

from jaxcoder.config import ModelConfig
from train.metrics import (
    JsonLines,
    TensorBoard,
    flops_per_token,
    peak_flops,
    progress_bar,
    read_json_lines,
)

TINY_STARCODER = ModelConfig(
    vocab_size=49152, n_positions=8192, n_embd=768, n_layer=20, n_head=12, n_inner=3072
)


@pytest.mark.parametrize("config", [MQA, MHA, dataclasses.replace(MQA, n_layer=5)])
@pytest.mark.parametrize("length", [1, 48])
def test_a_token_costs_six_operations_a_weight_and_its_attention(
    config: ModelConfig, length: int
) -> None:
    """Counted over the tensors of the model: each matrix is a product but that of positions."""
    matrices = {n: t for n, t in random_tensors(config).items() if t.ndim == 2}
    weights = sum(tensor.size for name, tensor in matrices.items() if "wpe" not in name)
    # Scores and values, two operations each, over half of the square, three times with backward.
    attention = 3 * config.n_layer * 2 * 2 * config.n_embd * length / 2
    assert flops_per_token(config, length) == 6 * weights + attention


def test_the_published_shape_costs_what_it_is_known_to() -> None:
    """By hand: 157,679,616 weights in products, 754,974,720 operations in attention."""
    assert flops_per_token(TINY_STARCODER, 8192) == 6 * 157_679_616 + 754_974_720


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 9090", None),
    ],
)
def test_the_peak_is_that_of_the_longest_name(kind: str, peak: float | None) -> None:
    """A v5 lite is not a v5; what is not known is not guessed."""
    assert peak_flops(kind) == peak


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, after_step=0)
    lines.write({"step": 1, "loss": 0.1 + 0.2, "text": "é\u2028\n"})
    lines.write({"step": 2, "loss": math.nan, "norm": math.inf, "pieces": [1, 2]})
    assert read_json_lines(path) == [
        {"step": 1, "loss": 0.1 + 0.2, "text": "é\u2028\n"},
        {"step": 2, "loss": None, "norm": None, "pieces": [1, 2]},
    ]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert lines.lines(1) == read_json_lines(path)[:1]
    assert lines.lines(3) == []


def test_a_run_that_goes_on_writes_after_its_step(tmp_path: Path) -> None:
    """Later lines come again, so they go; those of the step itself, validation too, stay."""
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, after_step=-1)
    for step in (0, 10, 20, 20, 30):
        first.write({"step": step})
    JsonLines(path, after_step=20).write({"step": 30, "again": True})
    found = [(line["step"], line.get("again")) for line in read_json_lines(path)]
    assert found == [(0, None), (10, None), (20, None), (20, None), (30, True)]
    JsonLines(path, after_step=-1)
    assert path.read_text() == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "damage", [b'{"step": 3, "lo', b"\x00\x00\x00", b"\xff\xfe\n[3]\n", b"{}\n"]
)
def test_a_damaged_end_is_left_out(tmp_path: Path, damage: bytes) -> None:
    """As a kill or a power cut leaves it; what is written afterwards can be read."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + damage)
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    JsonLines(path, after_step=2).write({"step": 3})
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Here a folder has its name; the run goes on."""
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    lines = JsonLines(path, after_step=5)
    for step in (6, 7, 8):
        lines.write({"step": step})
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert str(path) in said
    assert "the run goes on without it" in said
    assert lines.lines(6) == []


def test_old_lines_are_dropped_durably_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A loss of power could leave an empty file; a full disk leaves the old one, and is said."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    synced = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced.append)
        JsonLines(path, after_step=1)
    assert len(synced) == 2, "the file and its folder"
    assert read_json_lines(path) == [{"step": 1}]

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        lines = JsonLines(path, after_step=0)
    said = capsys.readouterr().err
    assert f"{path}: cannot be written (No space left on device); it is as it was" in said
    lines.write({"step": 1, "again": True})
    assert read_json_lines(path) == [{"step": 1}, {"step": 1, "again": True}]
    assert list(tmp_path.iterdir()) == [path]


def test_the_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program was started with standard error closed."""
    assert progress_bar(total=3, initial=0).disable
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(total=3, initial=1) as bar:
        assert not bar.disable
        assert bar.n == 1
    monkeypatch.setattr(sys, "stderr", None)
    assert progress_bar(total=3, initial=0).disable


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path / "board", after_step=-1)
    board.write({"step": 3, "loss": 1.5, "batch": "abc", "pieces": [1], "count": 2})
    board.close()
    events = events_of(tmp_path / "board")
    assert [event.session_log.status for event in events] == [0, 1, 0]
    assert events[1].step == 0
    assert events[2].step == 3
    assert {value.tag: value.simple_value for value in events[2].summary.value} == {
        "loss": 1.5,
        "count": 2.0,
    }


def test_tensorboard_shows_repeated_steps_once(tmp_path: Path) -> None:
    """A start that goes on says from where: what was written of later steps is void."""
    pytest.importorskip("tensorboardX")
    for after_step in (-1, 20):
        board = TensorBoard(tmp_path / "board", after_step=after_step)
        board.write({"step": 30, "loss": 1.0})
        board.close()
    assert len(list((tmp_path / "board").iterdir())) == 2
    starts = [e.step for e in events_of(tmp_path / "board") if e.session_log.status == 1]
    assert sorted(starts) == [0, 21]


@pytest.mark.parametrize("at", ["folder", "later"])
def test_tensorboard_that_cannot_be_written_is_said_once(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its thread died of the error, and the run hung once ten more numbers were in its queue."""
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "board"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if at == "folder":
        folder.write_text("")
    board = TensorBoard(folder, after_step=-1)
    if at == "later":
        monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", full)
    for step in range(30):
        board.write({"step": step, "loss": 1.0})
    board.close()
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert f"{folder}: cannot be written (" in said
    assert "the run goes on without it" in said


def events_of(folder: Path) -> list[Any]:
    """The records of TensorBoard's files: length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def test_tensorboard_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it is asked for."""
    for name in ("tensorboardX", "tensorboardX.event_file_writer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        TensorBoard(tmp_path / "board", after_step=-1)
    assert not (tmp_path / "board").exists()
    nothing = TensorBoard(None, after_step=-1)
    nothing.write({"step": 1, "loss": 1.0})
    nothing.close()
