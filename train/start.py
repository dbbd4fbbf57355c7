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
from .run_folder import TOKENIZER_FILE
from .sources import Document, no_document_problem, read_documents
from .tokenizer_training import train_tokenizer


class Origin(NamedTuple):
    """What a run starts from, found; nothing of it is taken over yet."""

    config: ModelConfig
    folder: Path | None
    """Of the model; None: a new one, with a tokenizer of its own."""


class Start(NamedTuple):
    """The beginning of a run, before any data is prepared."""

    config: ModelConfig
    tokenizer: Tokenizer
    checkpoint: Path | None
    """Folder of the weights to start from; None: fresh ones."""


def find_origin(config: TrainConfig) -> Origin:
    """The config of a run's model, and the folder that it is in; one of the Hub is fetched.

    Raises:
      CheckpointError, ConfigError: no such model, or a config.json that cannot be used.
      ValueError: a revision of a local folder.
    """
    if not config.model:
        return Origin(model_config_of(config.shape), None)
    folder = resolve(config.model, revision=config.revision)
    return Origin(ModelConfig.from_file(folder / "config.json"), folder)


def prepare_start(config: TrainConfig, run: Path, origin: Origin | None = None) -> Start:
    """Take over or make the tokenizer; RUN/tokenizer.json holds it afterwards.

    A model that does not exist yet gets a tokenizer trained on the run's own data, once.

    Args:
      config: the run, whose settings suit the model: see `start_checks`.
      run: its folder.
      origin: of the run; None: it is found now.

    Raises:
      CheckpointError, ConfigError, TokenizerError: the model's folder or the data is not usable.
    """
    origin = find_origin(config) if origin is None else origin
    model, path = origin.config, run / TOKENIZER_FILE
    if not path.exists():
        if origin.folder is None:
            _train_tokenizer(config, path)
        else:
            _take_tokenizer(origin.folder / TOKENIZER_FILE, path, model)
    tokenizer = Tokenizer.from_file(path, vocab_size=model.vocab_size, model_type=model.model_type)
    return Start(model, tokenizer, None if config.fresh else origin.folder)


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
