"""What a run reports while it goes: a bar, lines of JSON, and TensorBoard where asked for.

A metrics file that cannot be written does not stop a run: it is said once.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from jaxcoder.config import ModelConfig
from jaxcoder.diagnostics import say
from jaxcoder.durable import replace_file

_PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Dense bfloat16 peak of a device whose kind starts so, operations per second (data sheets)."""


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Operations of one token's forward and backward pass, without recomputation.

    Convention: 6 per weight of a product, output head included, plus causal attention,
    6 · n_layer · n_embd · seq_len (half of the square that PaLM's convention counts).

    Source: Chowdhery et al. arXiv:2204.02311, appendix B (PaLM).
    """
    d, h = config.n_embd, config.head_dim
    kv = 2 * config.n_kv_head * h
    block = d * d + d * kv + d * d + 2 * d * config.n_inner
    products = config.n_layer * block + config.vocab_size * d
    return 6.0 * products + 6.0 * config.n_layer * d * seq_len


def peak_flops(device_kind: str) -> float | None:
    """The bfloat16 peak of a device in operations per second; None where unknown, as of a CPU."""
    matching = [kind for kind in _PEAK_FLOPS if device_kind.startswith(kind)]
    return _PEAK_FLOPS[max(matching, key=len)] if matching else None


class JsonLines:
    """An append-only file of JSON objects with a `step`; a resumed run goes on after its step."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open `path`; lines of steps past `after_step`, which will be computed again, go."""
        self._path, self._failed = path, False
        try:
            if path.exists():
                self._drop_after(after_step)
        except OSError as exc:
            self._report(exc)
        except ValueError as exc:
            say(f"{exc}, with lines of steps that come again; the run goes on")

    def lines(self, step: int) -> list[dict[str, Any]]:
        """The objects of `step` in the file; none where it cannot be read."""
        try:
            return [line for line in read_json_lines(self._path) if line["step"] == step]
        except OSError:
            return []

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append one line; a number that JSON lacks becomes null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        # After a failure the last line may be cut off: the next one begins on a line of its own.
        begin = "\n" if self._failed else ""
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{begin}{json.dumps(clean)}\n")
        except OSError as exc:
            self._report(exc)
        else:
            if self._failed:
                say(f"{self._path}: is written again; the lines that came between are missing")
            self._failed = False

    def _drop_after(self, step: int) -> None:
        kept = [line for line in read_json_lines(self._path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        replace_file(self._path, text.encode())

    def _report(self, exc: OSError) -> None:
        if not self._failed:
            say(f"{self._path}: cannot be written ({exc.strerror}); the run goes on without it")
        self._failed = True


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a line cut off by a kill or a full disk is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(fields, dict) and isinstance(fields.get("step"), int):
            lines.append(fields)
    return lines


def progress_bar(*, total: int, initial: int) -> tqdm:
    """A bar over steps, on a terminal only."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(total=total, initial=initial, unit="step", disable=not is_terminal)


class TensorBoard:
    """Scalars for TensorBoard, where the package is present and the setting asks for it.

    Written here and not by the package's thread: an error there is lost, and the run then waits
    without end for room in the thread's queue.
    """

    def __init__(self, folder: Path | None, *, after_step: int) -> None:
        """Write into `folder`, where what was said of later steps is shown no more; None: nowhere.

        Raises:
          ValueError: tensorboardX is not installed.
        """
        self._folder = folder
        self._writer: Any = None  # an EventsWriter, where the package is present
        if folder is None:
            return
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        except ImportError as exc:
            raise ValueError(
                "loop.tensorboard: True, but tensorboardX is not installed; "
                "pip install tensorboardX, or leave it out: metrics.jsonl has the same numbers"
            ) from exc
        begin = Event(step=after_step + 1, session_log=SessionLog(status=SessionLog.START))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Names are otherwise of a second: of two starts within one, the last would remain.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{after_step + 1}")
            self._add(begin)
        except OSError as exc:
            self._give_up(exc)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Add every number of `fields` at its step."""
        if self._writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in fields.items()
            if name != "step" and isinstance(value, int | float)
        ]
        try:
            self._add(Event(step=fields["step"], summary=Summary(value=values)))
        except OSError as exc:
            self._give_up(exc)

    def close(self) -> None:
        """Close; what was written is on the disk."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with contextlib.suppress(OSError):
                writer.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()

    def _give_up(self, exc: OSError) -> None:
        """A record may be cut off: what came after it could not be read."""
        say(f"{self._folder}: cannot be written ({exc.strerror}); the run goes on without it")
        self.close()
