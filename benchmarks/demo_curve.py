"""The demo model's training runs in one small file: settings and curves, for card and picture.

``python -m benchmarks.demo_curve --runs RUN [RUN ...]``

Of each run: by which settings it differs from the preset, every n-th line of the training loss, and
every validation. With ``--kept N`` the first N runs of the file stay as they are, and the others
are put after them: a folder that a run was made in need not be kept for ever.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxcoder.json_file import json_bytes
from train.config import TrainConfig
from train.metrics import read_json_lines
from train.presets import PRESETS
from train.run_folder import DATA_FILE, METRICS_FILE, config_fields, read_config

CURVE = Path(__file__).parents[1] / "docs" / "demo-curve.json"

_POINTS = 300
_KEPT = ("loss", "validation_loss", "bits_per_byte")
_PLACES = ("data", "model", "out", "preset")


@dataclass(frozen=True)
class DemoCurve:
    """Thin out the metrics of the demo model's runs."""

    runs: tuple[Path, ...]
    """The training runs, each from the weights of the one before."""
    kept: int = 0
    """Runs of the file that stay in front of these."""
    out: Path = CURVE

    def run(self) -> None:
        """Write `out`.

        Raises:
          ValueError: a run without metrics, or fewer runs in the file than are to be kept.
        """
        before = json.loads(self.out.read_text(encoding="utf-8"))["runs"] if self.kept else []
        if len(before) < self.kept:
            raise ValueError(
                f"kept: {self.kept}, but {self.out} has {len(before)} runs; keep fewer"
            )
        runs = [*before[: self.kept], *map(_thinned, self.runs)]
        self.out.write_bytes(json_bytes({"runs": runs}))


def changes(config: TrainConfig) -> dict[str, Any]:
    """The settings, by dotted name, that are not those of the run's preset; places left out."""
    now, preset = config_fields(config), config_fields(PRESETS[config.preset]())
    found: dict[str, Any] = {}
    for name in now.keys() - set(_PLACES):
        if isinstance(now[name], dict):
            fields = now[name].items()
            found |= {f"{name}.{key}": value for key, value in fields if value != preset[name][key]}
        elif now[name] != preset[name]:
            found[name] = now[name]
    return dict(sorted(found.items()))


def _thinned(run: Path) -> dict[str, Any]:
    config = read_config(run)
    metrics = run / METRICS_FILE
    lines = read_json_lines(metrics) if metrics.exists() else []
    if not lines:
        raise ValueError(f"{metrics}: there are no lines, expected those of a run; check the path")
    training = [line for line in lines if line.get("loss") is not None]
    every = max(1, round(len(training) / _POINTS))
    validation = [line for line in lines if "validation_loss" in line]
    kept = sorted([*training[every - 1 :: every], *validation], key=lambda line: line["step"])
    versions = json.loads((run / "config.json").read_text(encoding="utf-8"))["versions"]
    return {
        "changes": changes(config),
        "steps": lines[-1]["step"],
        "steps_planned": config.loop.steps,
        "tokens_per_step_at_most": config.batch.size * config.batch.seq_len,
        "corpus_tokens": json.loads((run / DATA_FILE).read_text(encoding="utf-8"))["tokens"],
        "dtype": config.compute.dtype,
        "jax": versions["jax"],
        "lines": [
            {name: line[name] for name in ("step", *_KEPT) if line.get(name) is not None}
            for line in kept
        ],
    }


if __name__ == "__main__":
    tyro.cli(DemoCurve).run()
