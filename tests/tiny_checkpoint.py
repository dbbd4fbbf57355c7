"""A whole checkpoint of a few kilobytes whose model likes emoji, and fixtures over it.

A test module asks for the fixtures with ``pytest_plugins = ["tiny_checkpoint"]``. What the model
writes has characters of one to four bytes, some of them split over tokens, and bytes that are no
character at all.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizer_files import byte_tokenizer_json, write_tokenizer

from conversion.synthetic import synthetic_tensors
from jaxcoder import Generator, ModelConfig
from jaxcoder.checkpoint import save_checkpoint
from jaxcoder.hf_names import params_from_hf

# More rows than the tokenizer has tokens, as an embedding padded to a round size has. The head is a
# matrix of its own, so that what follows a token is free of what the token is.
CONFIG = ModelConfig(
    vocab_size=288,
    n_positions=256,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_inner=64,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
    tie_word_embeddings=False,
    eos_token_ids=(0,),
)

# In byte-level letters "ðŁĺ" is F0 9F 98, the start of many an emoji, and "Ģ" its last byte, 80.
_EMOJI_MERGES = [("ð", "Ł"), ("ðŁ", "ĺ")]
_START = "ðŁĺ"
_ENDS = "ĢģĤĥĦħĨ"
_LIKED = (_START, "def", "retur", "Ċ", "Ġ", "()", "Ã©", "x", ":", "1")


def write_tiny_checkpoint(parent: Path) -> Path:
    """Write config, weights, tokenizer and manifest into a new folder in `parent`."""
    definition = byte_tokenizer_json(_EMOJI_MERGES)
    params = params_from_hf(_tensors(definition["model"]["vocab"]), CONFIG)
    folder = parent / "tiny"
    save_checkpoint(folder, CONFIG, params, tokenizer_file=write_tokenizer(parent, definition))
    return folder


def _tensors(vocab: dict[str, int]) -> dict[str, np.ndarray]:
    """Synthetic tensors, less two features: "the last token was a start", and a constant."""
    tensors = synthetic_tensors(CONFIG)
    embedding, head = tensors["transformer.wte.weight"], tensors["lm_head.weight"]
    gain, bias = tensors["transformer.ln_f.weight"], tensors["transformer.ln_f.bias"]
    for matrix in (embedding, head, tensors["transformer.wpe.weight"]):
        matrix[:, :2] = 0.0
    for name, tensor in tensors.items():
        if "c_proj" in name:  # what blocks add to the residual stream
            tensor[:2] = 0.0
    gain *= 0.25  # logits of standard deviation 1.5, so that the two features decide much
    gain[:2], bias[:2] = (1.0, 0.0), (0.0, 1.0)
    embedding[vocab[_START], 0] = 10.0
    head[[vocab[letter] for letter in _ENDS], 0] = 3.0
    head[[vocab[token] for token in _LIKED], 1] = 4.0
    head[vocab["<|endoftext|>"], 1] = 3.5
    return tensors


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny checkpoint; not to be changed."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def generator(tiny_checkpoint: Path) -> Generator:
    """The tiny checkpoint, loaded."""
    return Generator.from_pretrained(tiny_checkpoint)


@pytest.fixture
def compiles() -> Callable[[], int]:
    """How many programs XLA has compiled since the test began."""
    before = len(_compilations())
    return lambda: len(_compilations()) - before


@functools.cache
def _compilations() -> list[float]:
    """Seconds of every compilation from now on; one listener serves the whole process."""
    seen: list[float] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen
