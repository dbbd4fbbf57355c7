"""A run that takes seconds: a model folder, documents, settings, the command of it.

The model is 2 layers of 32 with dropout, so that the random numbers of a step count too; the
tokenizer is the byte tokenizer of `tokenizer_files`.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer_files import write_tokenizer

from conversion.synthetic import synthetic_tensors
from jaxcoder.checkpoint import save_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.hf_names import params_from_hf
from train.command import command_words
from train.config import (
    BatchConfig,
    ComputeConfig,
    LoopConfig,
    OptimizerConfig,
    SourceConfig,
    TrainConfig,
)

__all__ = ["command_words", "run_config", "write_documents", "write_model"]

MODEL = ModelConfig(
    vocab_size=288,
    n_positions=96,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_inner=64,
    embd_pdrop=0.1,
    attn_pdrop=0.1,
    resid_pdrop=0.1,
    eos_token_ids=(0,),
)


def write_model(folder: Path) -> Path:
    """Write config, weights and tokenizer into the new `folder`."""
    tokenizer = write_tokenizer(folder.parent)
    params = params_from_hf(synthetic_tensors(MODEL), MODEL)
    save_checkpoint(folder, MODEL, params, tokenizer_file=tokenizer)
    return folder


def write_documents(folder: Path, *, count: int = 24) -> Path:
    """Write `count` Python files of a few lines into the new `folder`."""
    folder.mkdir()
    for number in range(count):
        body = "".join(f"    x = {number} + {line}\n" for line in range(1 + number % 5))
        text = f"def f_{number}(x):\n{body}    return x\n"
        (folder / f"document_{number:03}.py").write_text(text, encoding="utf-8")
    return folder


def run_config(parent: Path, **loop: Any) -> TrainConfig:
    """Ten steps of 4 rows of 64 tokens, saved every 2, validated every 4, logged every step.

    Args:
      parent: holds ``model`` and ``data``, which are made where they are absent, and the ``run``.
      loop: fields of `LoopConfig` to change.
    """
    model, data = parent / "model", parent / "data"
    if not model.exists():
        write_model(model)
    if not data.exists():
        write_documents(data)
    threads = 2 if importlib.util.find_spec("grain") else 0
    settings = LoopConfig(
        steps=10,
        log_every=1,
        eval_every=4,
        eval_batches=2,
        eval_infills=0,
        eval_samples=0,
        save_every=2,
    )
    return TrainConfig(
        preset="smoke",
        data=str(data),
        out=str(parent / "run"),
        model=str(model),
        source=SourceConfig(validation_share=0.2),
        batch=BatchConfig(size=4, seq_len=64, accumulation=2),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=2),
        compute=ComputeConfig(dtype="float32", loss_chunk=64, prefetch_threads=threads),
        loop=dataclasses.replace(settings, **loop),
    )


class Undisturbed(NamedTuple):
    """A run that came to its end in a process of its own, left alone."""

    config: TrainConfig
    variables: dict[str, str]
    """Of the environment, for more starts: what this one has compiled and tokenised is used."""
