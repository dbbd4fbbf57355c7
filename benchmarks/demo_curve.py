"""The demo model's two training runs as one small file, for a picture of their curves.

``python -m benchmarks.demo_curve --first RUN --second RUN``

Keeps every n-th line of the training loss, and every validation, of two run folders.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxcoder.json_file import json_bytes
from train.metrics import read_json_lines
from train.run_folder import METRICS_FILE, read_config

CURVE = Path(__file__).parents[1] / "docs" / "demo-curve.json"

_POINTS = 300
_KEPT = ("loss", "validation_loss", "bits_per_byte")


@dataclass(frozen=True)
class DemoCurve:
    """Thin out the metrics of the demo model's two runs."""

    first: Path
    """The training run from scratch."""
    second: Path
    """The run that went on from its weights."""
    out: Path = CURVE

    def run(self) -> None:
        """Write `out`.

        Raises:
          ValueError: a run without metrics, or one that has not ended.
        """
        runs = {"first": _thinned(self.first), "second": _thinned(self.second)}
        command = "python -m benchmarks.demo_curve --first runs/demo --second runs/demo-fim"
        self.out.write_bytes(json_bytes({"command": command} | runs))


def _thinned(run: Path) -> dict[str, Any]:
    config = read_config(run)
    metrics = run / METRICS_FILE
    lines = read_json_lines(metrics) if metrics.exists() else []
    steps = config.loop.steps
    if not lines or lines[-1]["step"] != steps:
        last = f"its last line is of step {lines[-1]['step']}" if lines else "there is none"
        raise ValueError(f"{metrics}: {last}, expected step {steps}; give runs that have ended")
    training = [line for line in lines if line.get("loss") is not None]
    every = max(1, round(len(training) / _POINTS))
    validation = [line for line in lines if "validation_loss" in line]
    kept = sorted([*training[every - 1 :: every], *validation], key=lambda line: line["step"])
    versions = json.loads((run / "config.json").read_text(encoding="utf-8"))["versions"]
    return {
        "steps": steps,
        "tokens_per_step_at_most": config.batch.size * config.batch.seq_len,
        "fim_rate": config.fim.rate,
        "dtype": config.compute.dtype,
        "jax": versions["jax"],
        "lines": [
            {name: line[name] for name in ("step", *_KEPT) if line.get(name) is not None}
            for line in kept
        ],
    }


if __name__ == "__main__":
    tyro.cli(DemoCurve).run()
