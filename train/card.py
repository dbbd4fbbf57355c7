"""The README.md of an exported model: what it came from, how it was trained, its licence."""

import json
from pathlib import Path

from jaxcoder.config import ModelConfig

from .config import TrainConfig
from .metrics import read_json_lines
from .run_folder import CONFIG_FILE, METRICS_FILE, config_fields

_OPENRAIL = (
    "BigCode OpenRAIL-M (https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement): "
    "a model made from the published weights stays under it, with its restrictions of use."
)
_REPORTED = ("loss", "validation_loss", "bits_per_byte", "infill_exact_match")


def model_card(run: Path, config: TrainConfig, model: ModelConfig, *, step: int) -> str:
    """Markdown with the base model, the data, the settings, the last figures and the licence."""
    is_from_weights = bool(config.model) and not config.fresh
    name, licence = _licence(config.model if is_from_weights else "")
    settings = json.dumps(config_fields(config), indent=1)
    provenance = json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))
    versions = ", ".join(f"{k} {v}" for k, v in provenance["versions"].items() if v)
    return f"""---
{name}library_name: jaxcoder
tags: [code, fill-in-the-middle, gpt_bigcode]
---
# {run.name or "model"}: step {step} of {config.loop.steps}

Base model: {config.model if is_from_weights else "none, trained from scratch"}\
{f" at {config.revision}" if config.revision else ""}.
Shape: {model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads, vocabulary \
{model.vocab_size}, {model.n_positions} positions.
Data: `{config.data}`, objective: fill-in-the-middle, rate {config.fim.rate}, of it \
{config.fim.spm_rate} suffix first.
Tokens seen: up to {step * config.batch.size * config.batch.seq_len:,}.

## Licence

{licence}

## Figures

{_figures(run, step)}

## Settings

Trained with `python -m train {config.preset or "PRESET"}` of jaxcoder (commit \
{provenance.get("git_commit")}; {versions}).

```json
{settings}
```
"""


def _licence(base: str) -> tuple[str, str]:
    """The card's licence field, and the sentence about it."""
    if not base:
        return "", "Trained from scratch: the licence of the data and your choice decide."
    if base.startswith("bigcode/"):
        return "license: bigcode-openrail-m\n", _OPENRAIL
    return "", (
        f"The licence of the base model, {base}. If that comes from the weights of bigcode/*: "
        f"{_OPENRAIL}"
    )


def _figures(run: Path, step: int) -> str:
    path = run / METRICS_FILE
    lines = read_json_lines(path) if path.exists() else []
    last: dict[str, tuple[float, int]] = {}
    for line in lines:
        if line["step"] <= step:
            last |= {name: (line[name], line["step"]) for name in _REPORTED if name in line}
    rows = [f"| {name} | {value} | {at} |" for name, (value, at) in last.items()]
    return "\n".join(["| measure | value | step |", "|---|---|---|", *rows])
