"""The README.md of an exported model: what it came from, how it was trained, its licence."""

import json
import re
from pathlib import Path

from jaxcoder.config import ModelConfig

from .config import TrainConfig
from .metrics import read_json_lines
from .run_folder import CONFIG_FILE, METRICS_FILE, config_fields

_OPENRAIL = "bigcode-openrail-m"
_TERMS = (
    "BigCode OpenRAIL-M (https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement): "
    "a model made from the published weights stays under it, with its restrictions of use."
)
_README_LIMIT = 1 << 20
_REPORTED = ("loss", "validation_loss", "bits_per_byte", "infill_exact_match")


def model_card(
    run: Path, config: TrainConfig, model: ModelConfig, *, step: int, base: Path | None
) -> str:
    """Markdown with the base model, the data, the settings, the last figures and the licence.

    The licence follows from the base model: one of bigcode's on the Hub has OpenRAIL-M; otherwise
    it is the one that the README.md in the base model's folder declares, as the cards written here
    do. Where there is none, the card says so.

    Args:
      run: the run directory.
      config: of the run.
      model: the config of the model.
      step: of the checkpoint that the card belongs to.
      base: folder of the weights that the run started from; None: fresh ones.
    """
    field, licence = _licence(config.model, base)
    settings = json.dumps(config_fields(config), indent=1)
    provenance = json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))
    versions = ", ".join(f"{k} {v}" for k, v in provenance["versions"].items() if v)
    return f"""---
{field}library_name: jaxcoder
tags: [code, fill-in-the-middle, gpt_bigcode]
---
# {run.name or "model"}: step {step} of {config.loop.steps}

Base model: {_base(config, base)}.
Shape: {model.n_layer} layers, {model.n_embd} wide, {model.n_head} heads, vocabulary \
{model.vocab_size}, {model.n_positions} positions.
Data: `{config.data}`, objective: fill-in-the-middle, rate {config.fim.rate}, of it \
{config.fim.spm_rate} suffix first{_line_share(config)}.
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


def _line_share(config: TrainConfig) -> str:
    return f" and {config.fim.line_rate} with one line missing" if config.fim.line_rate else ""


def _base(config: TrainConfig, base: Path | None) -> str:
    model = f"{config.model} at {config.revision}" if config.revision else config.model
    if base is not None:
        return model
    shape = f", in the shape and with the tokenizer of {model}" if model else ""
    return f"none, trained from scratch{shape}"


def _licence(model: str, base: Path | None) -> tuple[str, str]:
    """The card's licence field, and the sentence about it."""
    if base is None:
        return "", "Trained from scratch: the licence of the data and your choice decide."
    declared = _OPENRAIL if model.startswith("bigcode/") else _declared_licence(base)
    if declared is None:
        return "", (
            f"That of the base model, {model}, whose folder declares none. If its weights come "
            f"from bigcode/*: {_TERMS}"
        )
    field = f"license: {declared}\n"
    if declared == _OPENRAIL:
        return field, _TERMS
    return field, f"{declared}, which the README.md of the base model, {model}, declares."


def _declared_licence(folder: Path) -> str | None:
    """The licence field of a README.md on a model, or None."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_README_LIMIT)
    header = re.match(r"---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    field = header and re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", header[1], re.MULTILINE)
    return field[1] if field else None


def _figures(run: Path, step: int) -> str:
    path = run / METRICS_FILE
    lines = read_json_lines(path) if path.exists() else []
    last: dict[str, tuple[float, int]] = {}
    for line in lines:
        if line["step"] <= step:
            found = {name: line.get(name) for name in _REPORTED}
            last |= {
                name: (value, line["step"]) for name, value in found.items() if value is not None
            }
    rows = [f"| {name} | {value} | {at} |" for name, (value, at) in last.items()]
    return "\n".join(["| measure | value | step |", "|---|---|---|", *rows])
