"""`check_start`: all that can be told before a run's folder is touched, in one list.

That is what the settings show by themselves, what the run's folder already holds, and what follows
from the model: its config, its tokenizer, the names and shapes of its weights.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jaxcoder.errors import ConfigError
from jaxcoder.problems import raise_if_any
from jaxcoder.shards import find_weights
from jaxcoder.tensor_checks import match_tensors
from jaxcoder.tokenizer import Tokenizer

from .checkpoint_folder import committed_steps
from .config import TrainConfig
from .config_checks import config_problems, window_problems
from .headers import check_headers
from .lora import check_lora
from .run_folder import CHECKPOINTS, TOKENIZER_FILE, folder_problems
from .sources import read_documents
from .start import Origin, find_origin


def check_start(config: TrainConfig, *, further: Sequence[str] = ()) -> Origin:
    """Find what a run starts from; one error for all that is wrong. Nothing is written.

    A model of the Hub is fetched only when the settings have no mistake; of one in a folder both
    are told together. What takes reading all documents comes later.

    Args:
      config: the settings.
      further: problems found where the settings were read, to be listed with these.

    Raises:
      ConfigError: the settings, the folder of the run, or several things.
      CheckpointError, TokenizerError: the model's folder, where nothing else is wrong.
    """
    settings = list(config_problems(config))
    problems: list[str | ValueError] = [*further, *settings]
    if config.out:
        problems += folder_problems(Path(config.out))
    if config.data and not config.data.startswith("hf:"):
        with _noted(problems):
            read_documents(config.data, config.source)
    # A download takes minutes, and a shape with mistakes is none.
    if problems and not (config.model and Path(os.path.expanduser(config.model)).is_dir()):
        _raise(problems)
    # A setting that is wrong by itself is compared with nothing.
    mistaken = {problem.partition(":")[0] for problem in settings}
    try:
        origin = find_origin(config)
    except ValueError as exc:
        _raise([*problems, exc])
        raise  # not reached: there is a problem
    problems += _origin_problems(config, origin, mistaken)
    _raise(problems)
    return origin


def _origin_problems(
    config: TrainConfig, origin: Origin, mistaken: Collection[str]
) -> list[str | ValueError]:
    """What is wrong with the settings for this model, and with the model's files.

    Args:
      config: the settings.
      origin: the model.
      mistaken: names of settings that are not what they should be whatever the model.
    """
    problems: list[str | ValueError] = []
    if "batch.seq_len" not in mistaken:
        problems += window_problems(config.batch.seq_len, origin.config.n_positions)
    if config.lora.rank and not any(name.startswith("lora.") for name in mistaken):
        with _noted(problems):
            check_lora(config.lora, origin.config)
    if origin.folder is None:
        return problems
    # Without a name there is no run: the current folder's files are not its own.
    run = Path(config.out) if config.out else None
    has_own = run is not None and (run / TOKENIZER_FILE).exists()
    with _noted(problems):
        tokenizer = Tokenizer.from_file(
            (run if has_own else origin.folder) / TOKENIZER_FILE,
            vocab_size=origin.config.vocab_size,
            model_type=origin.config.model_type,
        )
        problems += _missing_tokens(config, tokenizer, mistaken)
    has_begun = run is not None and committed_steps(run / CHECKPOINTS)
    if not (config.fresh or has_begun):
        with _noted(problems):
            problems += match_tensors(find_weights(origin.folder).tensors, origin.config).problems
    return problems


def _missing_tokens(
    config: TrainConfig, tokenizer: Tokenizer, mistaken: Collection[str]
) -> list[str | ValueError]:
    """Special tokens that the settings ask for and the tokenizer lacks."""
    problems: list[str | ValueError] = []
    if "fim.rate" not in mistaken and config.fim.rate > 0:
        with _noted(problems):
            _ = tokenizer.fim
    if config.source.headers:
        with _noted(problems):
            check_headers(tokenizer)
    return problems


@contextlib.contextmanager
def _noted(problems: list[str | ValueError]) -> Iterator[None]:
    """Add the error of the block to `problems`."""
    try:
        yield
    except (ValueError, OSError) as exc:
        problems.append(exc if isinstance(exc, ValueError) else str(exc))


def _raise(problems: Sequence[str | ValueError]) -> None:
    if len(problems) == 1 and isinstance(problems[0], ValueError):
        raise problems[0]
    # A message of several lines stays below its own line of the list.
    listed = [str(problem).replace("\n", "\n  ") for problem in problems]
    remedy = "mend what is named (one such as optimizer.peak_lr is typed --optimizer.peak-lr)"
    raise_if_any(listed, "training configuration", remedy=remedy, error=ConfigError)
