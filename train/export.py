"""``python -m train export RUN``: a checkpoint of a run as a Hugging Face folder with a card."""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from conversion.export import generation_file, tokenizer_files
from conversion.folders import GENERATION_FILE, write_folder
from jaxcoder.config import ModelConfig
from jaxcoder.diagnostics import say
from jaxcoder.errors import CheckpointError, ConfigError
from jaxcoder.manifest import MANIFEST_FILE

from .card import model_card
from .checkpoint_folder import committed_steps
from .checkpoints import Checkpoints
from .restore import restore_step, step_config
from .run_folder import CHECKPOINTS, CONFIG_FILE, EXPORT, TOKENIZER_FILE, read_config
from .same_export import is_same_export
from .start import prepare_start
from .step import model_params

CARD_FILE = "README.md"


def export_run(
    run: Path,
    destination: Path | None = None,
    *,
    step: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    allow_older_checkpoint: bool = False,
) -> Path:
    """Write a run's weights, adapters merged, with every file that transformers reads.

    Args:
      run: the run directory.
      destination: a new or empty folder; by default export-STEP inside the run. One that holds
        this very export is left as it is.
      step: which checkpoint; by default the newest.
      dtype: of the weights written.
      allow_older_checkpoint: when the newest checkpoint is damaged, take the one before.

    Returns:
      The folder written, or found.

    Raises:
      ConfigError, CheckpointError: no run there, no valid checkpoint, no such step, or the folder
        is taken.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{run}: no run there, expected the folder given to --out; check the path"
        )
    config = read_config(run)
    checkpoints = Checkpoints(run / CHECKPOINTS, keep=config.loop.keep)
    steps = committed_steps(run / CHECKPOINTS)
    if not steps:
        raise CheckpointError(f"{run}: no checkpoint yet; let the run save one, then export it")
    if step is None:
        step = checkpoints.newest_valid(allow_fallback=allow_older_checkpoint)
    if step not in steps:
        raise CheckpointError(
            f"{run}: no checkpoint of step {step}, expected one of {', '.join(map(str, steps))}; "
            "give one of these with --step, or none for the newest"
        )
    tokenizer = run / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise ConfigError(
            f"{tokenizer}: no such file, expected the tokenizer that the run began with; restore it"
        )
    destination = run / f"{EXPORT}-{step}" if destination is None else destination
    start = prepare_start(config, run)

    def read() -> tuple[ModelConfig, dict]:
        state, _ = restore_step(checkpoints, step, config, start)
        params = model_params(state, config=step_config(config, start.config))
        numpy_dtype = np.dtype(jnp.dtype(dtype))
        return start.config, jax.tree.map(lambda leaf: np.asarray(leaf).astype(numpy_dtype), params)

    def make_files(model: ModelConfig) -> dict[str, bytes]:
        files = {GENERATION_FILE: generation_file(model)}
        files |= tokenizer_files(tokenizer, model)
        card = model_card(run, config, model, step=step, base=start.checkpoint)
        return files | {CARD_FILE: card.encode()}

    if (destination / MANIFEST_FILE).is_file():
        model, params = read()
        files = {TOKENIZER_FILE: tokenizer.read_bytes(), **make_files(model)}
        if is_same_export(destination, model, params, files):
            say(f"{destination}: holds this export of step {step} already; nothing was written")
            return destination
    write_folder(destination, run, read, make_files)
    return destination
