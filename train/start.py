"""What a run starts from: the model's config, its tokenizer, its weights."""

import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcoder.checkpoint import load_checkpoint
from jaxcoder.config import ModelConfig
from jaxcoder.diagnostics import say
from jaxcoder.durable import replace_file
from jaxcoder.errors import ConfigError
from jaxcoder.hub import resolve
from jaxcoder.model import GPTBigCode, init_params
from jaxcoder.tokenizer import Tokenizer

from .config import ShapeConfig, TrainConfig
from .config_checks import window_problems
from .lora import check_lora
from .run_folder import TOKENIZER_FILE
from .sources import Document, no_document_problem, read_documents
from .tokenizer_training import train_tokenizer


class Start(NamedTuple):
    """The beginning of a run, before any data is prepared."""

    config: ModelConfig
    tokenizer: Tokenizer
    checkpoint: Path | None
    """Folder of the weights to start from; None: fresh ones."""


def prepare_start(config: TrainConfig, run: Path) -> Start:
    """Find or make config and tokenizer; RUN/tokenizer.json holds the tokenizer afterwards.

    A model that does not exist yet gets a tokenizer trained on the run's own data, once.

    Raises:
      CheckpointError, ConfigError, TokenizerError: the model's folder is not usable, or its window
        is shorter than a row.
    """
    path = run / TOKENIZER_FILE
    if config.model:
        folder = resolve(config.model, revision=config.revision)
        model_config = ModelConfig.from_file(folder / "config.json")
        if not path.exists():
            _take_tokenizer(folder / TOKENIZER_FILE, path, model_config)
    else:
        folder, model_config = None, model_config_of(config.shape)
        if not path.exists():
            _train_tokenizer(config, path)
    tokenizer = Tokenizer.from_file(
        path, vocab_size=model_config.vocab_size, model_type=model_config.model_type
    )
    problems = window_problems(config.batch.seq_len, model_config.n_positions)
    if problems:
        raise ConfigError(f"training configuration: {problems[0]}; lower it")
    if config.lora.rank:
        check_lora(config.lora, model_config)
    if config.fim.rate > 0:
        _ = tokenizer.fim  # raises where the tokenizer has no sentinels
    return Start(model_config, tokenizer, None if config.fresh else folder)


def model_config_of(shape: ShapeConfig) -> ModelConfig:
    """TinyStarCoderPy's architecture in another size."""
    return ModelConfig(
        vocab_size=shape.vocab_size,
        n_positions=shape.n_positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_inner=4 * shape.n_embd,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        resid_pdrop=shape.dropout,
        initializer_range=shape.n_embd**-0.5,
        bos_token_id=0,
        eos_token_ids=(0,),
    )


def initial_params(start: Start, *, seed: int) -> dict:
    """Float32 parameters: the checkpoint's, or fresh ones drawn from `seed`."""
    if start.checkpoint is None:
        return init_params(GPTBigCode(start.config), jax.random.key(seed))
    _, params = load_checkpoint(start.checkpoint, dtype="float32")
    return jax.tree.map(jnp.array, params)


def _take_tokenizer(source: Path, path: Path, model: ModelConfig) -> None:
    """Copy the model's tokenizer, once it has been seen to be one: an error names the original."""
    Tokenizer.from_file(source, vocab_size=model.vocab_size, model_type=model.model_type)
    replace_file(path, source.read_bytes())


def _train_tokenizer(config: TrainConfig, path: Path) -> None:
    documents = read_documents(config.data, config.source)
    texts = (each.text for each in documents if isinstance(each, Document))
    first = next(texts, None)
    if first is None:
        raise ConfigError(no_document_problem(config.data, config.source))
    say(f"training a tokenizer of {config.shape.vocab_size} entries on {config.data}")
    replace_file(path, train_tokenizer(itertools.chain([first], texts), config.shape.vocab_size))
