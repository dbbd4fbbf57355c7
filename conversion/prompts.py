"""Prompts to verify and measure with: HumanEval where it is at hand, else random ids."""

import gzip
import json
from pathlib import Path

import numpy as np

from jaxcoder.config import ModelConfig
from jaxcoder.tokenizer import Tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Beside the checkout; may be absent. Holds humaneval/ and starcoder-tokenizer/."""


def humaneval_texts(file: Path | None = None) -> list[str]:
    """The `prompt` fields of a HumanEval JSONL file; [] when none is given nor at hand.

    Raises:
      ValueError: a named file that is missing, or is no JSONL with a `prompt` in each line.
    """
    if file is None:
        file = SHARED_DATA / "humaneval" / "HumanEval.jsonl.gz"
        if not file.exists():
            return []
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    except OSError as exc:
        raise ValueError(
            f"{file}: cannot be read ({exc.strerror or exc}); check --prompts"
        ) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ValueError(
            f"{file}: expected JSON lines with a field 'prompt' each, as HumanEval has"
        ) from exc
    if not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise ValueError(f"{file}: expected at least one prompt, and none that is empty")
    return prompts


def prompt_ids(
    folder: Path, config: ModelConfig, count: int, *, file: Path | None = None
) -> tuple[list[list[int]], str]:
    """`count` prompts as ids, and a word on where they come from.

    HumanEval, or `file`, through the checkpoint's tokenizer, or the StarCoder tokenizer when the
    checkpoint has none and fits it; without these random ids of HumanEval's lengths (33 to 395).

    Raises:
      ValueError: a named `file` that cannot be used.
    """
    texts = humaneval_texts(file)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists() and config.vocab_size == 49152:
        tokenizer_file = SHARED_DATA / "starcoder-tokenizer" / "tokenizer.json"
    if texts and tokenizer_file.exists():
        tokenizer = Tokenizer.from_file(
            tokenizer_file, vocab_size=config.vocab_size, model_type=config.model_type
        )
        source = "HumanEval" if file is None else str(file)
        return [tokenizer.encode(text) for text in texts[:count]], source
    if file is not None:
        raise ValueError(f"{file}: needs a tokenizer.json in {folder} to become ids; add it there")
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.integers(33, 396, size=count), max(1, config.n_positions // 2))
    prompts = [rng.integers(0, config.vocab_size, size=length).tolist() for length in lengths]
    return prompts, "random ids"


def long_document(
    folder: Path, config: ModelConfig, length: int, *, file: Path | None = None
) -> np.ndarray:
    """int [length]: prompts joined, and repeated until there are enough tokens."""
    prompts, _ = prompt_ids(folder, config, 164, file=file)
    joined = [token for prompt in prompts for token in prompt]
    repeats = -(-length // len(joined))
    return np.array((joined * repeats)[:length])
